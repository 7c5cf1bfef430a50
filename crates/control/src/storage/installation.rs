//! The installation as a whole: its serial and the authority that its tokens pin.

use sqlx::{AnyConnection, Row as _};

use super::{
    AUDIT_SECONDS_MIN, Error, REMOVED_SECONDS_MIN, SESSION_SECONDS_MIN, Touched, audit, number,
};

/// The one row of the installation.
pub(crate) struct Installation {
    pub(crate) serial: u64,
    pub(crate) authority: Option<[u8; 32]>,
}

/// Makes the installation's row.
pub(crate) async fn insert(connection: &mut AnyConnection, now: i64) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO installation (id, serial, created, audit_past_id, audit_past, audit_last_id,
                                   audit_last)
         VALUES (1, 1, $1, 0, $2, 0, $2)",
    )
    .bind(now)
    .bind([0; 32].as_slice())
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the installation; `None` before the first start has ended.
pub(crate) async fn installation(
    connection: &mut AnyConnection,
) -> Result<Option<Installation>, Error> {
    let row = sqlx::query("SELECT serial, authority FROM installation WHERE id = 1")
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let authority: Option<&[u8]> = row.try_get("authority")?;
    let authority = authority
        .map(|bytes| bytes.try_into().map_err(|_| Error::Corrupt("authority")))
        .transpose()?;
    Ok(Some(Installation {
        serial: number(&row, "serial")?,
        authority,
    }))
}

/// Remembers the authority that tokens pin from now on.
pub(crate) async fn update_authority(
    connection: &mut AnyConnection,
    authority: [u8; 32],
) -> Result<(), Error> {
    sqlx::query("UPDATE installation SET authority = $1 WHERE id = 1")
        .bind(authority.as_slice())
        .execute(connection)
        .await?;
    Ok(())
}

/// Gives the change that ends now its serial, if anybody can see it.
pub(super) async fn advance(
    connection: &mut AnyConnection,
    touched: Touched,
) -> Result<u64, Error> {
    let step = i64::from(touched != Touched::Nobody);
    let row = sqlx::query("UPDATE installation SET serial = serial + $1 RETURNING serial")
        .bind(step)
        .fetch_one(&mut *connection)
        .await?;
    let serial: i64 = row.try_get("serial")?;
    match touched {
        Touched::Nobody => {}
        Touched::Org(org) => {
            sqlx::query("UPDATE org SET serial = $1 WHERE id = $2")
                .bind(serial)
                .bind(org.0)
                .execute(connection)
                .await?;
        }
        Touched::Everybody => {
            sqlx::query("UPDATE org SET serial = $1 WHERE removed IS NULL")
                .bind(serial)
                .execute(connection)
                .await?;
        }
    }
    u64::try_from(serial).map_err(|_| Error::Corrupt("serial"))
}

/// Deletes what only explained the past and has done so long enough. Returns how many rows went.
pub(crate) async fn delete_past(connection: &mut AnyConnection, now: i64) -> Result<u64, Error> {
    let statements = [
        "DELETE FROM ssh_certificate WHERE valid_before < $1",
        "DELETE FROM ssh_certificate WHERE node IN (SELECT id FROM node WHERE removed < $1)",
        "DELETE FROM ssh_cut WHERE node IN (SELECT id FROM node WHERE removed < $1)",
        "DELETE FROM token WHERE COALESCE(revoked, expires) < $1",
        "DELETE FROM token WHERE node IN (SELECT id FROM node WHERE removed < $1)",
        "DELETE FROM node WHERE removed < $1",
        "DELETE FROM browser WHERE expires < $1",
    ];
    let mut gone = 0;
    for statement in statements {
        gone += sqlx::query(statement)
            .bind(now - REMOVED_SECONDS_MIN)
            .execute(&mut *connection)
            .await?
            .rows_affected();
    }
    for statement in [
        "DELETE FROM ssh_session_piece WHERE session IN
             (SELECT id FROM ssh_session WHERE begun < $1)",
        "DELETE FROM ssh_session WHERE begun < $1",
    ] {
        gone += sqlx::query(statement)
            .bind(now - SESSION_SECONDS_MIN)
            .execute(&mut *connection)
            .await?
            .rows_affected();
    }
    gone += audit::delete_past(connection, now - AUDIT_SECONDS_MIN).await?;
    Ok(gone)
}
