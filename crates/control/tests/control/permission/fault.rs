//! Every route with a fault at each row that it writes, and at its commit: all or nothing.

use std::time::Duration;

use axum::http::Method;
use control::AuditFault;
use model::{api::LoggedIn, token::Token};
use sqlx::{AnyConnection, AssertSqlSafe, Row as _};
use tokio::time::timeout;

use super::{Stage, routes};
use crate::{
    audit::verify,
    disk::database,
    world::{World, enrol_request},
};

/// More rows than any route writes here.
const ROWS_MAX: u32 = 200;

/// What a PostgreSQL says when something fails (its appendix A), and the status that it means: a
/// function of it, a full disk, a disk that fails. SQLite says the first only; the rest needs a
/// disk, and has one where real servers run.
const FAULTS: [(&str, u16); 3] = [("P0001", 500), ("53100", 507), ("58030", 503)];

/// What a PostgreSQL is told to do in place of failing: to take two seconds.
const SLOW: &str = "slow";

/// How long a request may take at most.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A database that fails where it is told to.
struct Faulty {
    connection: AnyConnection,
    is_sqlite: bool,
    tables: Vec<String>,
}

#[tokio::test]
async fn a_change_that_fails_anywhere_leaves_nothing() {
    let (mut writing, mut faults) = (0, 0);
    for (method, path) in routes(&Stage::new().await).await {
        // What a capture sends, and that it shall end, is written nowhere.
        if method == Method::GET || path.starts_with("/v1/captures/") {
            continue;
        }
        let found = fail_everywhere(&method, &path).await;
        faults += found;
        writing += u32::from(found > 0);
    }
    // Only questions, beginnings of sign-ins and the log-out of nobody write nothing.
    assert!(
        writing >= 30 && faults >= 150,
        "{faults} in {writing} routes"
    );
}

/// Asks with a fault at the first row, the second and so on until there is none left to meet.
/// Returns how many there were; none when the route writes nothing.
async fn fail_everywhere(method: &Method, path: &str) -> u32 {
    let stage = Stage::new().await;
    let mut store = Faulty::new(&stage.world).await;
    let before = store.rows().await;
    let faults = &FAULTS[..if store.is_sqlite { 1 } else { FAULTS.len() }];
    store.fail_at(1, false, FAULTS[0].0).await;
    // Whoever may not is refused before anything is written.
    let mut asker = None;
    for index in 0..stage.askers.len() {
        match stage.ask(method, path, index).await {
            200..300 => return 0,
            500.. => {
                asker = Some(index);
                break;
            }
            _ => {}
        }
    }
    let asker = asker.unwrap_or_else(|| panic!("{method} {path}: nobody may"));
    for (fault, expected) in faults {
        store.fail_at(1, true, fault).await;
        let status = stage.ask(method, path, asker).await;
        assert_eq!(status, *expected, "{method} {path}: {fault} at the commit");
        let after = store.rows().await;
        assert_eq!(after, before, "{method} {path}: {fault} at the commit");
    }
    for row in 1..ROWS_MAX {
        for (fault, expected) in faults {
            store.fail_at(row, false, fault).await;
            let status = stage.ask(method, path, asker).await;
            let after = store.rows().await;
            let asked = format!("{method} {path}: {fault} at row {row}");
            if status < 500 {
                assert!(status < 300, "{asked}: {status}");
                assert_ne!(after, before, "{asked}");
                store.fail_at(0, false, fault).await;
                assert_eq!(audit_of(&stage.world).await, Ok(()), "{asked}");
                return row;
            }
            assert_eq!(status, *expected, "{asked}");
            assert_eq!(after, before, "{asked}");
        }
    }
    panic!("{method} {path} writes without end");
}

#[tokio::test]
async fn a_change_that_takes_two_seconds_at_any_row_is_made_whole() {
    let stage = Stage::new().await;
    let mut store = Faulty::new(&stage.world).await;
    if store.is_sqlite {
        return;
    }
    let named = |(name, _): &(&str, Option<Token>)| *name == "operator";
    let operator = stage.askers.iter().position(named).expect("one is there");
    let mut before = store.rows().await;
    for row in 1..ROWS_MAX {
        store.fail_at(row, row == 1, SLOW).await;
        let asked = stage.ask(&Method::POST, "/v1/tokens", operator);
        let status = timeout(REQUEST_TIMEOUT, asked).await;
        assert_eq!(status, Ok(201), "at row {row}");
        let after = store.rows().await;
        assert_ne!(after, before);
        before = after;
        if store.seen().await < row {
            assert!(row > 3, "a token, its audit, the serial: {row}");
            assert_eq!(audit_of(&stage.world).await, Ok(()));
            return;
        }
    }
    panic!("a token writes without end");
}

/// Verifies the audit as an operator, whoever has logged out meanwhile.
async fn audit_of(world: &World) -> Result<(), AuditFault> {
    let token = world.server.admin_token().await.expect("a login token");
    let request = enrol_request("auditor", 150);
    let operator = world.post("/v1/login", &token.token, &request).await;
    verify(world, &operator.parse::<LoggedIn>().session_token).await
}

impl Faulty {
    async fn new(world: &World) -> Self {
        let is_sqlite = world.url().starts_with("sqlite");
        let mut connection = database(world).await;
        let names = if is_sqlite {
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'
                    AND name NOT LIKE '%sqlx%'"
        } else {
            "SELECT CAST(table_name AS TEXT) AS name FROM information_schema.tables
             WHERE table_schema = 'public' AND table_name NOT LIKE '%sqlx%'"
        };
        let rows = sqlx::query(names).fetch_all(&mut connection).await;
        let rows = rows.expect("a schema");
        let tables = rows.iter().map(|row| row.get("name")).collect();
        let mut store = Self {
            connection,
            is_sqlite,
            tables,
        };
        store.prepare().await;
        store
    }

    /// Lets each row that is written count, and fail when it is the one.
    async fn prepare(&mut self) {
        let tables = [
            "CREATE TABLE fault (seen INTEGER, failing INTEGER, at_commit INTEGER, fault TEXT)",
            "INSERT INTO fault VALUES (0, 0, 0, '')",
            "CREATE TABLE fault_parent (id INTEGER PRIMARY KEY)",
            if self.is_sqlite {
                "CREATE TABLE fault_orphan (parent INTEGER REFERENCES fault_parent (id)
                     DEFERRABLE INITIALLY DEFERRED)"
            } else {
                "CREATE TABLE fault_orphan (parent INTEGER)"
            },
        ];
        for statement in tables {
            self.execute(statement).await;
        }
        if !self.is_sqlite {
            for statement in POSTGRES {
                self.execute(statement).await;
            }
        }
        for table in self.tables.clone() {
            for verb in ["INSERT", "UPDATE", "DELETE"] {
                let head = format!("CREATE TRIGGER fault_{table}_{verb} BEFORE {verb}");
                let body = if self.is_sqlite {
                    "BEGIN
                         UPDATE fault SET seen = seen + 1;
                         INSERT INTO fault_orphan
                             SELECT -1 FROM fault WHERE seen = failing AND at_commit = 1;
                         SELECT RAISE(ABORT, 'injected') FROM fault
                             WHERE seen = failing AND at_commit = 0;
                     END"
                } else {
                    "FOR EACH ROW EXECUTE FUNCTION meet_fault()"
                };
                self.execute(&format!("{head} ON \"{table}\" {body}")).await;
            }
        }
    }

    /// Fails from now on at row `row` of a change, or at the commit of a change that wrote it.
    async fn fail_at(&mut self, row: u32, at_commit: bool, fault: &str) {
        let at_commit = u8::from(at_commit);
        let statement = format!(
            "UPDATE fault SET seen = 0, failing = {row}, at_commit = {at_commit}, fault = '{fault}'"
        );
        self.execute(&statement).await;
    }

    /// Returns how many rows the last change wrote.
    async fn seen(&mut self) -> u32 {
        let row = sqlx::query("SELECT seen FROM fault").fetch_one(&mut self.connection);
        let seen: i32 = row.await.expect("a row").get("seen");
        u32::try_from(seen).expect("a count")
    }

    /// Returns all rows of all tables.
    async fn rows(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        for table in &self.tables {
            let row = if self.is_sqlite {
                let columns = format!("SELECT name FROM pragma_table_info('{table}')");
                let columns = sqlx::query(AssertSqlSafe(columns));
                let columns = columns.fetch_all(&mut self.connection).await;
                let columns = columns.expect("a table").into_iter();
                let columns = columns.map(|row| format!("quote(\"{}\")", row.get::<&str, _>(0)));
                columns.collect::<Vec<_>>().join(" || '|' || ")
            } else {
                "CAST(t AS TEXT)".to_owned()
            };
            let rows = format!("SELECT {row} AS held FROM \"{table}\" t ORDER BY 1");
            let rows = sqlx::query(AssertSqlSafe(rows)).fetch_all(&mut self.connection);
            let rows = rows.await.expect("rows").into_iter();
            all.extend(rows.map(|row| format!("{table}: {}", row.get::<&str, _>("held"))));
        }
        all
    }

    async fn execute(&mut self, statement: &str) {
        let done = sqlx::query(AssertSqlSafe(statement.to_owned()));
        let done = done.execute(&mut self.connection).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

/// What meets faults in a PostgreSQL.
const POSTGRES: [&str; 4] = [
    "CREATE FUNCTION fail(fault TEXT) RETURNS void LANGUAGE plpgsql AS $$
     BEGIN
         IF fault = 'slow' THEN
             PERFORM pg_sleep(2);
         ELSE
             RAISE EXCEPTION 'injected' USING ERRCODE = fault;
         END IF;
     END $$",
    "CREATE FUNCTION meet_fault() RETURNS trigger LANGUAGE plpgsql AS $$
     DECLARE met fault%ROWTYPE;
     BEGIN
         UPDATE fault SET seen = seen + 1 RETURNING * INTO met;
         IF met.seen = met.failing AND met.at_commit = 1 THEN
             INSERT INTO fault_orphan VALUES (-1);
         ELSIF met.seen = met.failing THEN
             PERFORM fail(met.fault);
         END IF;
         IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
         RETURN NEW;
     END $$",
    "CREATE FUNCTION fail_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
     BEGIN
         PERFORM fail(fault.fault) FROM fault;
         RETURN NULL;
     END $$",
    "CREATE CONSTRAINT TRIGGER fault_commit AFTER INSERT ON fault_orphan
     DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail_at_commit()",
];
