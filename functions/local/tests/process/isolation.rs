//! Startup rejects databases whose row-level security does not isolate users. Roles belong to a whole cluster, hence each test
//! has one of its own.

use agent_service::postgres::embedded;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{process::Sandbox, server::Server};

struct Cluster {
    sandbox: Sandbox,
    server: Server,
}

impl Cluster {
    async fn new() -> Self {
        let (sandbox, server) = Sandbox::with_server(&[]).await;
        Self { sandbox, server }
    }

    async fn change(&self, sql: &str) {
        let mut admin = self.sandbox.connect_as_owner().await;
        admin.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
        admin.close().await.unwrap();
    }

    fn url(&self, login: &str) -> String {
        let options = embedded::connect_options(&self.sandbox.data()).unwrap().username(login);
        let socket = options.get_socket().unwrap().to_str().unwrap().to_owned();
        let mut url = options.to_url_lossy();
        url.set_host(Some("localhost")).unwrap();
        url.set_query(Some(&format!("host={socket}")));
        url.to_string()
    }

    async fn expect_rejection(self, words: &[&str]) {
        self.server.process.stop().await;
        let rejected = self.sandbox.run(&[], &[]).await;
        assert_rejected(&rejected, words);
    }
}

fn assert_rejected(rejected: &crate::process::ProcessOutput, words: &[&str]) {
    assert_eq!(rejected.code, Some(1), "{rejected:?}");
    for word in ["the database does not isolate users"].iter().chain(words) {
        assert!(rejected.stderr.contains(word), "{word} is not in:\n{}", rejected.stderr);
    }
    assert!(!rejected.stdout.contains("Ready."), "{}", rejected.stdout);
}

#[tokio::test]
async fn startup_rejects_role_that_bypasses_rls_with_remedy() {
    let cluster = Cluster::new().await;
    cluster.server.remember("kept").await;
    for (role, attribute) in
        [("agent_service", "bypassrls"), ("agent_reader", "bypassrls"), ("agent_maintenance", "superuser")]
    {
        cluster.change(&format!("alter role {role} {attribute}")).await;
        let other = Sandbox::new();
        let rejected = other.run(&[], &[("DATABASE_URL", &cluster.url("postgres"))]).await;
        let remedy = format!("alter role {role} nosuperuser nobypassrls");
        assert_rejected(&rejected, &[&format!("the role {role} bypasses row-level security"), &remedy]);
        cluster.change(&remedy).await;
    }
    let other = Sandbox::new();
    let server = other.start_serving(&[("DATABASE_URL", &cluster.url("postgres"))]).await;
    assert_eq!(server.remembered().await, ["kept"]);

    cluster.change("alter role agent_service bypassrls").await;
    cluster.expect_rejection(&["agent_service bypasses row-level security"]).await;
}

#[tokio::test]
async fn startup_rejects_table_without_forced_rls() {
    let cluster = Cluster::new().await;
    cluster.change("alter table memories no force row level security").await;
    cluster.change("alter table documents disable row level security").await;
    cluster
        .expect_rejection(&["not forced on", "memories", "documents", "alter table", "force row level security"])
        .await;
}

#[tokio::test]
async fn startup_rejects_weakened_policy() {
    let cluster = Cluster::new().await;
    cluster.change("alter policy own_rows on memories using (true)").await;
    cluster.expect_rejection(&["own_rows on memories"]).await;
}

#[tokio::test]
async fn startup_rejects_new_table_without_policy() {
    let cluster = Cluster::new().await;
    cluster.change("create table later (user_id text)").await;
    cluster.expect_rejection(&["not forced on later"]).await;
}

#[tokio::test]
async fn startup_rejects_role_that_owns_a_table() {
    let cluster = Cluster::new().await;
    cluster.change("alter table memory_history owner to agent_service").await;
    cluster.expect_rejection(&["the role agent_service owns memory_history"]).await;
}

#[tokio::test]
async fn login_without_roles_is_told_to_migrate() {
    let cluster = Cluster::new().await;
    cluster.change("create role stranger login; create role half login; grant agent_service to half").await;
    let admin = cluster.url("postgres");
    for login in ["stranger", "half"] {
        let url = cluster.url(login);
        let service = [("DATABASE_URL", url.as_str())];
        // Without access to `_sqlx_migrations` the login cannot tell whether migrations are pending, so the server keeps waiting.
        let sandbox = Sandbox::new();
        let server = sandbox.start_listening(&service).await;
        let line = server.process.stderr.line("the database is not ready").await;
        assert!(line.contains("permission denied"), "{line}");
        assert_eq!(server.health().await.next().await, Some(ServingStatus::NotServing));
        server.process.stop().await;

        cluster.change(&format!("grant select on _sqlx_migrations to {login}")).await;
        let rejected = sandbox.run(&[], &service).await;
        let role = if login == "half" { "agent_maintenance" } else { "agent_service" };
        assert_rejected(&rejected, &[&format!("may not act as {role}"), "agent-local migrate", "DATABASE_ADMIN_URL"]);

        let migrated = sandbox.run(&["migrate"], &[service[0], ("DATABASE_ADMIN_URL", &admin)]).await;
        assert_eq!(migrated.code, Some(0), "{migrated:?}");
        sandbox.start_serving(&service).await.process.stop().await;
    }
}

#[tokio::test]
async fn reading_login_requires_reader_role() {
    let cluster = Cluster::new().await;
    cluster.change("create role reading login; grant agent_reader to reading").await;
    let (url, read_url) = (cluster.url("postgres"), cluster.url("reading"));
    let variables = [("DATABASE_URL", url.as_str()), ("DATABASE_READ_URL", read_url.as_str())];
    let (sandbox, server) = Sandbox::with_server(&variables).await;
    server.remember("kept").await;
    assert_eq!(server.remembered().await, ["kept"]);
    server.process.stop().await;
    cluster.change("revoke agent_reader from reading").await;
    let rejected = sandbox.run(&[], &variables).await;
    assert_rejected(&rejected, &["may not act as agent_reader"]);
}
