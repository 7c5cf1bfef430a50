//! Recorded sessions and their pieces.

use std::net::IpAddr;

use model::{
    id::{NodeId, OrgId, SessionId, UserId},
    name::Label,
    ssh::{NewSession, Piece, Principal, Serial, SessionEnd},
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, number, of_org, optional_text, text};

/// A session's row, with the names of its organisation and person.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) org: OrgId,
    pub(crate) org_name: Option<Label>,
    pub(crate) node: NodeId,
    pub(crate) node_name: Label,
    pub(crate) user: Option<UserId>,
    pub(crate) user_name: Option<Label>,
    pub(crate) serial: Serial,
    pub(crate) account: Principal,
    pub(crate) source: IpAddr,
    pub(crate) terminal: bool,
    pub(crate) command: Option<String>,
    pub(crate) begun: i64,
    pub(crate) ended: Option<i64>,
    pub(crate) status: Option<u32>,
    pub(crate) pieces: u32,
    pub(crate) bytes: u64,
}

/// Begins a session whose certificate is one of this organisation's; `None` if it is not.
pub(crate) async fn insert(
    connection: &mut AnyConnection,
    now: i64,
    org: OrgId,
    (node, node_name): (NodeId, &Label),
    session: &NewSession,
) -> Result<Option<SessionId>, Error> {
    let row = sqlx::query(
        "INSERT INTO ssh_session (org, node, node_name, \"user\", serial, account, source, terminal,
                                  command, begun)
         SELECT $1, $2, $3, c.\"user\", c.serial, $4, $5, $6, $7, $8 FROM ssh_certificate c
         WHERE c.serial = $9 AND c.org = $1 AND c.kind = 'user' RETURNING id",
    )
    .bind(org.0)
    .bind(node.0)
    .bind(node_name.as_str())
    .bind(session.account.as_str())
    .bind(session.source.to_string())
    .bind(i64::from(session.terminal))
    .bind(session.command.as_deref())
    .bind(now)
    .bind(i64::try_from(session.serial.0).unwrap_or_default())
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok(SessionId(row.try_get("id")?))).transpose()
}

/// Appends a piece.
pub(crate) async fn insert_piece(
    connection: &mut AnyConnection,
    session: SessionId,
    piece: &Piece,
) -> Result<(), Error> {
    sqlx::query("INSERT INTO ssh_session_piece (session, number, text) VALUES ($1, $2, $3)")
        .bind(session.0)
        .bind(i64::from(piece.number))
        .bind(piece.text.as_str())
        .execute(&mut *connection)
        .await?;
    let length = i64::try_from(piece.text.len()).map_err(|_| Error::Corrupt("text"))?;
    sqlx::query("UPDATE ssh_session SET pieces = pieces + 1, bytes = bytes + $1 WHERE id = $2")
        .bind(length)
        .bind(session.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Ends a session.
pub(crate) async fn update_end(
    connection: &mut AnyConnection,
    now: i64,
    session: SessionId,
    end: SessionEnd,
) -> Result<(), Error> {
    sqlx::query("UPDATE ssh_session SET ended = $1, status = $2 WHERE id = $3")
        .bind(now)
        .bind(end.status.map(i64::from))
        .bind(session.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes a session with its record.
pub(crate) async fn delete(
    connection: &mut AnyConnection,
    session: SessionId,
) -> Result<(), Error> {
    for statement in [
        "DELETE FROM ssh_session_piece WHERE session = $1",
        "DELETE FROM ssh_session WHERE id = $1",
    ] {
        sqlx::query(statement)
            .bind(session.0)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Returns how many sessions an organisation has records of, and of how many bytes.
pub(crate) async fn size(connection: &mut AnyConnection, org: OrgId) -> Result<(u64, u64), Error> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS n, CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes
         FROM ssh_session WHERE org = $1",
    )
    .bind(org.0)
    .fetch_one(connection)
    .await?;
    Ok((number(&row, "n")?, number(&row, "bytes")?))
}

/// Returns a session.
pub(crate) async fn session(
    connection: &mut AnyConnection,
    id: SessionId,
) -> Result<Option<Session>, Error> {
    sqlx::query(
        "SELECT s.*, o.name AS org_name, u.name AS user_name FROM ssh_session s
         LEFT JOIN org o ON o.id = s.org LEFT JOIN \"user\" u ON u.id = s.\"user\"
         WHERE s.id = $1",
    )
    .bind(id.0)
    .fetch_optional(connection)
    .await?
    .map(parse)
    .transpose()
}

pub(super) const SESSIONS: [&str; 2] = of_all_or_one!(
    "SELECT s.*, o.name AS org_name, u.name AS user_name FROM ssh_session s
     LEFT JOIN org o ON o.id = s.org LEFT JOIN \"user\" u ON u.id = s.\"user\"
     WHERE s.id > $1 AND",
    "s.org",
    "ORDER BY s.id LIMIT $3"
);

/// Returns sessions after `after` in the order of their ids.
pub(crate) async fn sessions(
    connection: &mut AnyConnection,
    org: Option<OrgId>,
    after: i64,
    limit: u32,
) -> Result<Vec<Session>, Error> {
    sqlx::query(of_org(SESSIONS, org))
        .bind(after)
        .bind(org.map(|org| org.0))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

/// Returns pieces from `first` on.
pub(crate) async fn pieces(
    connection: &mut AnyConnection,
    session: SessionId,
    first: i64,
    limit: u32,
) -> Result<Vec<Piece>, Error> {
    sqlx::query(
        "SELECT number, text FROM ssh_session_piece WHERE session = $1 AND number >= $2
         ORDER BY number LIMIT $3",
    )
    .bind(session.0)
    .bind(first)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?
    .iter()
    .map(|row| {
        Ok(Piece {
            number: number(row, "number")?,
            text: row.try_get("text")?,
        })
    })
    .collect()
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: AnyRow) -> Result<Session, Error> {
    let status: Option<i64> = row.try_get("status")?;
    let status = status.map(|status| u32::try_from(status).map_err(|_| Error::Corrupt("status")));
    Ok(Session {
        id: SessionId(row.try_get("id")?),
        org: OrgId(row.try_get("org")?),
        org_name: optional_text(&row, "org_name")?,
        node: NodeId(row.try_get("node")?),
        node_name: text(&row, "node_name")?,
        user: row.try_get::<Option<i64>, _>("user")?.map(UserId),
        user_name: optional_text(&row, "user_name")?,
        serial: number(&row, "serial").map(Serial)?,
        account: text(&row, "account")?,
        source: text(&row, "source")?,
        terminal: row.try_get::<i64, _>("terminal")? == 1,
        command: row.try_get("command")?,
        begun: row.try_get("begun")?,
        ended: row.try_get("ended")?,
        status: status.transpose()?,
        pieces: number(&row, "pieces")?,
        bytes: number(&row, "bytes")?,
    })
}
