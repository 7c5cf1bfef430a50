//! SSH: the keys of each organisation's CA, sealed, and every certificate that they signed.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use model::{
    id::{NodeId, OrgId, UserId},
    name::Label,
    ssh::{
        self, CaKeys, CertificateKind, KeyId, KeyState, Principal, PublicKeyText, Recording,
        Serial, SignatureText, Statement,
    },
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, bytes, number, of_org, optional_text, text};

/// A key's row.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) id: i64,
    pub(crate) usage: Usage,
    pub(crate) state: KeyState,
    pub(crate) public_key: PublicKeyText,
    pub(crate) sealed: Sealed,
    pub(crate) created: i64,
    pub(crate) trusted_until: Option<i64>,
}

/// A seed under the master key: nonce, ciphertext, tag.
pub(crate) type Sealed = [u8; 60];

/// What a key signs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Usage {
    Certificate(CertificateKind),
    /// The statement of the other keys.
    Statement,
}

/// What the store keeps of an organisation's authority beside its keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Authority {
    pub(crate) version: u64,
    pub(crate) signature: SignatureText,
    pub(crate) recording: Recording,
}

/// A certificate's row.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(crate) serial: Serial,
    pub(crate) content: Content,
    pub(crate) org_name: Option<Label>,
    pub(crate) revoked: Option<i64>,
}

/// What a certificate says, apart from its serial.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) kind: CertificateKind,
    pub(crate) org: OrgId,
    pub(crate) node: NodeId,
    pub(crate) user: Option<UserId>,
    pub(crate) key_id: KeyId,
    pub(crate) principals: Vec<Principal>,
    pub(crate) public_key: PublicKeyText,
    pub(crate) valid_after: i64,
    pub(crate) valid_before: i64,
}

/// Which certificates a revocation is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Selection {
    Serial(Serial),
    User(UserId),
    Node(NodeId),
    /// The host certificates of a node.
    Host(NodeId),
}

impl Usage {
    /// Returns the word that the store keeps.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Certificate(CertificateKind::User) => "user",
            Self::Certificate(CertificateKind::Host) => "host",
            Self::Statement => "statement",
        }
    }
}

/// Adds a key.
pub(crate) async fn insert_key(
    connection: &mut AnyConnection,
    now: i64,
    org: OrgId,
    usage: Usage,
    state: KeyState,
    public_key: PublicKeyText,
    sealed: Sealed,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO ssh_key (org, usage, state, public_key, sealed, created)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(org.0)
    .bind(usage.as_str())
    .bind(state.to_string())
    .bind(public_key.0.as_slice())
    .bind(sealed.as_slice())
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives a key another state; `trusted_until` is of a retired one.
pub(crate) async fn update_key(
    connection: &mut AnyConnection,
    id: i64,
    state: KeyState,
    trusted_until: Option<i64>,
) -> Result<(), Error> {
    sqlx::query("UPDATE ssh_key SET state = $1, trusted_until = $2 WHERE id = $3")
        .bind(state.to_string())
        .bind(trusted_until)
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes a key; its seed is gone.
pub(crate) async fn delete_key(connection: &mut AnyConnection, id: i64) -> Result<(), Error> {
    sqlx::query("DELETE FROM ssh_key WHERE id = $1")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes the authority of an organisation that is removed; what it signed stays listed.
pub(crate) async fn delete_authority(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<(), Error> {
    for statement in [
        "DELETE FROM ssh_key WHERE org = $1",
        "DELETE FROM ssh_authority WHERE org = $1",
    ] {
        sqlx::query(statement)
            .bind(org.0)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Returns the keys of an organisation: current ones first, then next ones, then retired ones.
pub(crate) async fn keys_of(connection: &mut AnyConnection, org: OrgId) -> Result<Vec<Key>, Error> {
    let rows = sqlx::query("SELECT * FROM ssh_key WHERE org = $1 ORDER BY id DESC")
        .bind(org.0)
        .fetch_all(connection)
        .await?;
    let keys: Result<Vec<_>, Error> = rows.into_iter().map(parse_key).collect();
    let mut keys = keys?;
    keys.sort_by_key(|key| key.state);
    Ok(keys)
}

/// Tells whether any key is stored, which needs the master key.
pub(crate) async fn has_keys(connection: &mut AnyConnection) -> Result<bool, Error> {
    let found = sqlx::query("SELECT 1 FROM ssh_key LIMIT 1")
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

/// Returns one of the keys, if any is stored, and whose it is.
pub(crate) async fn first_key(
    connection: &mut AnyConnection,
) -> Result<Option<(OrgId, Key)>, Error> {
    let row = sqlx::query("SELECT * FROM ssh_key ORDER BY id LIMIT 1")
        .fetch_optional(connection)
        .await?;
    row.map(|row| Ok((OrgId(row.try_get("org")?), parse_key(row)?)))
        .transpose()
}

/// Returns the organisations that have no authority yet.
pub(crate) async fn orgs_without(connection: &mut AnyConnection) -> Result<Vec<OrgId>, Error> {
    sqlx::query(
        "SELECT id FROM org WHERE removed IS NULL
                AND NOT EXISTS (SELECT 1 FROM ssh_authority a WHERE a.org = org.id)
         ORDER BY id",
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(|row| Ok(OrgId(row.try_get("id")?)))
    .collect()
}

/// Returns the organisations with retired keys whose time is over.
pub(crate) async fn orgs_with_past_keys(
    connection: &mut AnyConnection,
    now: i64,
) -> Result<Vec<OrgId>, Error> {
    sqlx::query("SELECT DISTINCT org FROM ssh_key WHERE trusted_until <= $1 ORDER BY org")
        .bind(now)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| Ok(OrgId(row.try_get("org")?)))
        .collect()
}

/// Returns what is kept of an organisation's authority beside its keys.
pub(crate) async fn authority(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<Option<Authority>, Error> {
    let row = sqlx::query("SELECT * FROM ssh_authority WHERE org = $1")
        .bind(org.0)
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let signature: &[u8] = row.try_get("signature")?;
    let signature = signature
        .try_into()
        .map_err(|_| Error::Corrupt("signature"))?;
    Ok(Some(Authority {
        version: number(&row, "version")?,
        signature: SignatureText(signature),
        recording: match row.try_get("recording")? {
            "off" => Recording::Off,
            "pty" => Recording::Pty,
            "all" => Recording::All,
            _ => return Err(Error::Corrupt("recording")),
        },
    }))
}

/// Keeps a new version of the statement with its signature.
pub(crate) async fn upsert_authority(
    connection: &mut AnyConnection,
    org: OrgId,
    version: u64,
    signature: SignatureText,
) -> Result<(), Error> {
    let version = i64::try_from(version).map_err(|_| Error::Corrupt("version"))?;
    sqlx::query(
        "INSERT INTO ssh_authority (org, version, signature, recording)
         VALUES ($1, $2, $3, 'off')
         ON CONFLICT (org) DO UPDATE SET version = $2, signature = $3",
    )
    .bind(org.0)
    .bind(version)
    .bind(signature.0.as_slice())
    .execute(connection)
    .await?;
    Ok(())
}

/// Keeps which sessions are recorded.
pub(crate) async fn update_recording(
    connection: &mut AnyConnection,
    org: OrgId,
    recording: Recording,
) -> Result<(), Error> {
    sqlx::query("UPDATE ssh_authority SET recording = $1 WHERE org = $2")
        .bind(recording.to_string())
        .bind(org.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns the authority as nodes see it; `None` while the organisation has none.
pub(crate) async fn published(
    connection: &mut AnyConnection,
    now: i64,
    org: OrgId,
) -> Result<Option<ssh::Authority>, Error> {
    let Some(authority) = authority(connection, org).await? else {
        return Ok(None);
    };
    let keys = keys_of(connection, org).await?;
    let signing_key = keys
        .iter()
        .find(|key| key.usage == Usage::Statement)
        .ok_or(Error::Corrupt("usage"))?
        .public_key;
    Ok(Some(ssh::Authority {
        signing_key,
        statement: Statement {
            version: authority.version,
            keys: ca_keys(&keys),
            signature: authority.signature,
        },
        revoked: revoked_serials(connection, now, org).await?.collect(),
        cut: cut(connection, org).await?,
        recording: authority.recording,
    }))
}

/// Returns the public halves of the keys that certify, in their order.
pub(crate) fn ca_keys(keys: &[Key]) -> CaKeys {
    let of = |kind| {
        let keys = keys
            .iter()
            .filter(move |key| key.usage == Usage::Certificate(kind));
        keys.map(|key| key.public_key).collect()
    };
    CaKeys {
        user: of(CertificateKind::User),
        host: of(CertificateKind::Host),
    }
}

/// Adds a certificate and returns its serial, before it is signed.
pub(crate) async fn insert_certificate(
    connection: &mut AnyConnection,
    content: &Content,
) -> Result<Serial, Error> {
    let principals: Vec<_> = content.principals.iter().map(Principal::as_str).collect();
    let row = sqlx::query(
        "INSERT INTO ssh_certificate (kind, org, node, \"user\", key_id, principals, public_key,
                                      valid_after, valid_before)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING serial",
    )
    .bind(content.kind.to_string())
    .bind(content.org.0)
    .bind(content.node.0)
    .bind(content.user.map(|user| user.0))
    .bind(content.key_id.as_str())
    .bind(principals.join(","))
    .bind(content.public_key.0.as_slice())
    .bind(content.valid_after)
    .bind(content.valid_before)
    .fetch_one(connection)
    .await?;
    number(&row, "serial").map(Serial)
}

/// Counts the certificates of a node that have not ended.
pub(crate) async fn count_certificates(
    connection: &mut AnyConnection,
    now: i64,
    node: NodeId,
) -> Result<u32, Error> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS n FROM ssh_certificate WHERE node = $1 AND valid_before > $2",
    )
    .bind(node.0)
    .bind(now)
    .fetch_one(connection)
    .await?;
    number(&row, "n")
}

/// Returns the serial and the validity period of the newest user certificate that was made for the
/// node at `source`.
pub(crate) async fn newest_certificate(
    connection: &mut AnyConnection,
    org: OrgId,
    source: IpAddr,
) -> Result<Option<(Serial, i64, i64)>, Error> {
    let row = sqlx::query(
        "SELECT c.serial, c.valid_after, c.valid_before
         FROM node n JOIN ssh_certificate c ON c.node = n.id
         WHERE n.org = $1 AND n.address = $2 AND c.kind = 'user'
         ORDER BY c.serial DESC LIMIT 1",
    )
    .bind(org.0)
    .bind(source.to_string())
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let period = (row.try_get("valid_after")?, row.try_get("valid_before")?);
    Ok(Some((
        number(&row, "serial").map(Serial)?,
        period.0,
        period.1,
    )))
}

pub(super) const CERTIFICATES: [&str; 2] = of_all_or_one!(
    "SELECT c.*, o.name AS org_name FROM ssh_certificate c LEFT JOIN org o ON o.id = c.org
     WHERE c.serial > $1 AND",
    "c.org",
    "ORDER BY c.serial LIMIT $3"
);

/// Returns certificates after `after` in the order of their serials.
pub(crate) async fn certificates(
    connection: &mut AnyConnection,
    org: Option<OrgId>,
    after: i64,
    limit: u32,
) -> Result<Vec<Certificate>, Error> {
    sqlx::query(of_org(CERTIFICATES, org))
        .bind(after)
        .bind(org.map(|org| org.0))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse_certificate)
        .collect()
}

/// Revokes certificates that have not ended, or one that has, and returns one organisation for
/// each.
pub(crate) async fn revoke(
    connection: &mut AnyConnection,
    now: i64,
    selection: Selection,
) -> Result<Vec<OrgId>, Error> {
    let (statement, id) = match selection {
        Selection::Serial(Serial(serial)) => (
            // Its session may go on. That it was revoked after its end keeps it listed.
            "UPDATE ssh_certificate
             SET revoked = CASE WHEN valid_before = $1 THEN $1 + 1 ELSE $1 END
             WHERE revoked IS NULL AND serial = $2 AND (valid_before > $1 OR kind = 'user')
             RETURNING org",
            // What no row can have is none of ours.
            i64::try_from(serial).unwrap_or_default(),
        ),
        Selection::User(user) => (
            "UPDATE ssh_certificate SET revoked = $1
             WHERE valid_before > $1 AND revoked IS NULL AND \"user\" = $2 RETURNING org",
            user.0,
        ),
        Selection::Node(node) => (
            "UPDATE ssh_certificate SET revoked = $1
             WHERE valid_before > $1 AND revoked IS NULL AND node = $2 RETURNING org",
            node.0,
        ),
        Selection::Host(node) => (
            "UPDATE ssh_certificate SET revoked = $1
             WHERE valid_before > $1 AND revoked IS NULL AND node = $2 AND kind = 'host'
             RETURNING org",
            node.0,
        ),
    };
    sqlx::query(statement)
        .bind(now)
        .bind(id)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| Ok(OrgId(row.try_get("org")?)))
        .collect()
}

/// Ends every certificate of an organisation, whose keys are trusted no longer.
pub(crate) async fn end_certificates(
    connection: &mut AnyConnection,
    now: i64,
    org: OrgId,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE ssh_certificate SET revoked = COALESCE(revoked, $1),
                valid_before = CASE WHEN $1 > valid_after THEN $1 ELSE valid_after + 1 END
         WHERE org = $2 AND valid_before > $1",
    )
    .bind(now)
    .bind(org.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Lets every user certificate count no more that was made so far for the nodes of a selection, and
/// returns the organisation of each node for which that is new.
pub(crate) async fn cut_off(
    connection: &mut AnyConnection,
    selection: Selection,
) -> Result<Vec<OrgId>, Error> {
    let (user, node) = match selection {
        Selection::User(user) => (Some(user.0), None),
        Selection::Node(node) => (None, Some(node.0)),
        Selection::Serial(_) | Selection::Host(_) => return Ok(Vec::new()),
    };
    sqlx::query(
        "INSERT INTO ssh_cut (node, org, serial)
         SELECT id, org, (SELECT MAX(serial) FROM ssh_certificate) FROM node
         WHERE (\"user\" = $1 OR id = $2) AND removed IS NULL AND address IS NOT NULL
               AND EXISTS (SELECT 1 FROM ssh_certificate)
         ON CONFLICT (node) DO UPDATE SET serial = excluded.serial
         WHERE excluded.serial > ssh_cut.serial RETURNING org",
    )
    .bind(user)
    .bind(node)
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(|row| Ok(OrgId(row.try_get("org")?)))
    .collect()
}

/// Returns up to which serial certificates count no more, by the address of their node.
pub(crate) async fn cut(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<BTreeMap<Ipv6Addr, Serial>, Error> {
    sqlx::query(
        "SELECT n.address, c.serial FROM ssh_cut c JOIN node n ON n.id = c.node
         WHERE c.org = $1 AND n.removed IS NULL",
    )
    .bind(org.0)
    .fetch_all(connection)
    .await?
    .iter()
    .map(|row| Ok((text(row, "address")?, number(row, "serial").map(Serial)?)))
    .collect()
}

/// Returns the revoked certificates of an organisation that have not ended, and those that were
/// revoked after their end.
pub(crate) async fn revoked_serials(
    connection: &mut AnyConnection,
    now: i64,
    org: OrgId,
) -> Result<impl ExactSizeIterator<Item = Serial> + use<>, Error> {
    let rows = sqlx::query(
        "SELECT serial FROM ssh_certificate
         WHERE org = $1 AND revoked IS NOT NULL
               AND (valid_before > $2 OR revoked > valid_before)",
    )
    .bind(org.0)
    .bind(now)
    .fetch_all(connection)
    .await?;
    let serials: Result<Vec<_>, Error> = rows
        .iter()
        .map(|row| number(row, "serial").map(Serial))
        .collect();
    Ok(serials?.into_iter())
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse_key(row: AnyRow) -> Result<Key, Error> {
    let sealed: &[u8] = row.try_get("sealed")?;
    Ok(Key {
        id: row.try_get("id")?,
        usage: match row.try_get("usage")? {
            "user" => Usage::Certificate(CertificateKind::User),
            "host" => Usage::Certificate(CertificateKind::Host),
            "statement" => Usage::Statement,
            _ => return Err(Error::Corrupt("usage")),
        },
        state: match row.try_get("state")? {
            "current" => KeyState::Current,
            "next" => KeyState::Next,
            "retired" => KeyState::Retired,
            _ => return Err(Error::Corrupt("state")),
        },
        public_key: PublicKeyText(bytes(&row, "public_key")?),
        sealed: sealed.try_into().map_err(|_| Error::Corrupt("sealed"))?,
        created: row.try_get("created")?,
        trusted_until: row.try_get("trusted_until")?,
    })
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse_certificate(row: AnyRow) -> Result<Certificate, Error> {
    let principals: &str = row.try_get("principals")?;
    let principals: Result<Vec<_>, _> = principals.split(',').map(str::parse).collect();
    let content = Content {
        kind: match row.try_get("kind")? {
            "user" => CertificateKind::User,
            "host" => CertificateKind::Host,
            _ => return Err(Error::Corrupt("kind")),
        },
        org: OrgId(row.try_get("org")?),
        node: NodeId(row.try_get("node")?),
        user: row.try_get::<Option<i64>, _>("user")?.map(UserId),
        key_id: text(&row, "key_id")?,
        principals: principals.map_err(|_| Error::Corrupt("principals"))?,
        public_key: PublicKeyText(bytes(&row, "public_key")?),
        valid_after: row.try_get("valid_after")?,
        valid_before: row.try_get("valid_before")?,
    };
    Ok(Certificate {
        serial: number(&row, "serial").map(Serial)?,
        content,
        org_name: optional_text(&row, "org_name")?,
        revoked: row.try_get("revoked")?,
    })
}
