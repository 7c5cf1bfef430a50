//! Every route with a fault at each row that it writes, and at its commit: all or nothing.

use axum::http::Method;
use control::AuditFault;
use model::api::LoggedIn;
use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use super::{Stage, routes};
use crate::{
    audit::verify,
    disk::database,
    world::{World, enrol_request},
};

/// More rows than any route writes here.
const ROWS_MAX: u32 = 200;

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
    store.fail_at(1, false).await;
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
    store.fail_at(1, true).await;
    let status = stage.ask(method, path, asker).await;
    assert!(
        status >= 500,
        "{method} {path}: {status} though the commit failed"
    );
    assert_eq!(
        store.rows().await,
        before,
        "{method} {path}: the commit failed"
    );
    for row in 1..ROWS_MAX {
        store.fail_at(row, false).await;
        let status = stage.ask(method, path, asker).await;
        let after = store.rows().await;
        if status < 500 {
            assert!(status < 300, "{method} {path}: {status} at row {row}");
            assert_ne!(after, before, "{method} {path}");
            store.fail_at(0, false).await;
            assert_eq!(audit_of(&stage.world).await, Ok(()), "{method} {path}");
            return row;
        }
        assert_eq!(after, before, "{method} {path}: row {row} failed");
    }
    panic!("{method} {path} writes without end");
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
            "CREATE TABLE fault (seen INTEGER, failing INTEGER, at_commit INTEGER)",
            "INSERT INTO fault VALUES (0, 0, 0)",
            "CREATE TABLE fault_parent (id INTEGER PRIMARY KEY)",
            "CREATE TABLE fault_orphan (parent INTEGER REFERENCES fault_parent (id)
                 DEFERRABLE INITIALLY DEFERRED)",
        ];
        for statement in tables {
            self.execute(statement).await;
        }
        if !self.is_sqlite {
            let function = "CREATE FUNCTION meet_fault() RETURNS trigger LANGUAGE plpgsql AS $$
                 DECLARE met fault%ROWTYPE;
                 BEGIN
                     UPDATE fault SET seen = seen + 1 RETURNING * INTO met;
                     IF met.seen = met.failing AND met.at_commit = 1 THEN
                         INSERT INTO fault_orphan VALUES (-1);
                     ELSIF met.seen = met.failing THEN
                         RAISE EXCEPTION 'injected';
                     END IF;
                     IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
                     RETURN NEW;
                 END $$";
            self.execute(function).await;
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
    async fn fail_at(&mut self, row: u32, at_commit: bool) {
        let at_commit = u8::from(at_commit);
        let statement =
            format!("UPDATE fault SET seen = 0, failing = {row}, at_commit = {at_commit}");
        self.execute(&statement).await;
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
