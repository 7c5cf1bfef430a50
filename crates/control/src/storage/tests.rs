//! What a change costs the database: rows of the organisation that it is about.

use sqlx::{AssertSqlSafe, Row as _};

use super::{
    audit::ROWS,
    node::{NODES, NODES_OF, NODES_OF_USER},
    oidc::GROUPS_OF,
    peer::PEERS,
    policy::{RULES, RULES_OF, TAGS_OF},
    service::{SERVICES, SERVICES_OF},
    session::SESSIONS,
    site::{SITES, SITES_OF},
    ssh::CERTIFICATES,
    token::TOKENS,
    user::{USERS, USERS_OF},
    *,
};

/// Tells how SQLite finds the rows of a statement (sqlite.org/eqp.html).
async fn plan(read: &mut Connection, statement: &str) -> Vec<String> {
    let explain = format!("EXPLAIN QUERY PLAN {statement}");
    let rows = sqlx::query(AssertSqlSafe(explain)).bind(1_i64);
    let rows = rows.fetch_all(read).await.expect("a statement");
    rows.iter()
        .map(|row| row.get::<String, _>("detail"))
        .collect()
}

/// `SCAN` visits all of a table, and so does a search for all row ids above one.
fn visits_all(step: &str) -> bool {
    step.starts_with("SCAN") || step.contains("(rowid>?)")
}

#[tokio::test]
async fn maps_and_lists_are_made_from_rows_of_their_organisation_alone() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(&folder.path().join("ginnel.db")).await;
    let store = store.expect("a new database");
    let mut read = store.read().await.expect("it answers");
    let lists = [
        CERTIFICATES,
        NODES,
        PEERS,
        RULES,
        SERVICES,
        SESSIONS,
        SITES,
        TOKENS,
        USERS,
    ];
    let maps = [
        RULES_OF,
        TAGS_OF,
        USERS_OF,
        GROUPS_OF,
        NODES_OF,
        NODES_OF_USER,
        SERVICES_OF,
        SITES_OF,
    ];
    for statement in lists.map(|[_, one]| one).iter().chain(&maps) {
        let plan = plan(&mut read, statement).await;
        assert!(
            !plan.iter().any(|step| visits_all(step)),
            "{statement}: {plan:?}"
        );
    }
    // Who is asked for by a name is looked for in all; the rows themselves are not.
    let rows = plan(&mut read, ROWS[1]).await;
    assert!(!visits_all(&rows[0]), "{rows:?}");
    // The look sees what it looks for.
    let by_user = "SELECT * FROM node WHERE \"user\" = $1";
    for statement in lists.map(|[all, _]| all).iter().chain([&by_user]) {
        let plan = plan(&mut read, statement).await;
        assert!(
            plan.iter().any(|step| visits_all(step)),
            "{statement}: {plan:?}"
        );
    }
    drop(read);
    store.close().await;
}
