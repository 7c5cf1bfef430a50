//! What a change costs the database: rows of the organisation that it is about.

use sqlx::{AssertSqlSafe, Row as _};

use super::{
    node::{NODES_OF, NODES_OF_USER},
    oidc::GROUPS_OF,
    policy::{RULES_OF, TAGS_OF},
    service::SERVICES_OF,
    site::SITES_OF,
    user::USERS_OF,
    *,
};

/// SQLite says how it finds rows (sqlite.org/eqp.html): `SCAN` visits all of a table, and so does a
/// search for all row ids above one.
#[tokio::test]
async fn a_map_is_built_from_rows_of_its_organisation_alone() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(&folder.path().join("ginnel.db")).await;
    let store = store.expect("a new database");
    let mut read = store.read().await.expect("it answers");
    let plans = async |read: &mut Connection, statement: &str| {
        let explain = format!("EXPLAIN QUERY PLAN {statement}");
        let rows = sqlx::query(AssertSqlSafe(explain)).bind(1_i64);
        let rows = rows.fetch_all(read).await.expect("a statement");
        let plan = rows.iter().map(|row| row.get::<String, _>("detail"));
        plan.collect::<Vec<_>>()
    };
    let visits_all = |step: &String| step.starts_with("SCAN") || step.contains("(rowid>?)");
    for statement in [
        RULES_OF,
        TAGS_OF,
        USERS_OF,
        GROUPS_OF,
        NODES_OF,
        NODES_OF_USER,
        SERVICES_OF,
        SITES_OF,
    ] {
        let plan = plans(&mut read, statement).await;
        assert!(!plan.iter().any(visits_all), "{statement}: {plan:?}");
    }
    // The look sees what it looks for.
    for statement in [
        "SELECT * FROM rule WHERE id > $1 ORDER BY id",
        "SELECT * FROM node WHERE \"user\" = $1",
    ] {
        let plan = plans(&mut read, statement).await;
        assert!(plan.iter().any(visits_all), "{statement}: {plan:?}");
    }
    drop(read);
    store.close().await;
}
