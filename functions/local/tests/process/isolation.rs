//! A database that could show one user's rows to another is refused before anybody is served. Roles belong to a whole cluster,
//! hence each test has one of its own.

use agent_service::postgres::embedded;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::server::{Home, Server, soon};

/// A server with a Postgres of its own that has been made ready.
struct Cluster {
    home: Home,
    server: Server,
}

impl Cluster {
    async fn new() -> Self {
        let home = Home::new();
        let server = home.serving(&[]).await;
        Self { home, server }
    }

    /// Changes something behind the server.
    async fn change(&self, sql: &str) {
        let options = embedded::connect_options(&self.home.data()).unwrap();
        let mut behind = soon("a connection behind the server", PgConnection::connect_with(&options)).await.unwrap();
        behind.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
        behind.close().await.unwrap();
    }

    /// The URL for somebody else to log in.
    fn url(&self, login: &str) -> String {
        let options = embedded::connect_options(&self.home.data()).unwrap().username(login);
        let socket = options.get_socket().unwrap().to_str().unwrap().to_owned();
        let mut url = options.to_url_lossy();
        url.set_host(Some("localhost")).unwrap();
        url.set_query(Some(&format!("host={socket}")));
        url.to_string()
    }

    /// Starts it once more, which has to be refused in these words.
    async fn expect_refusal(self, words: &[&str]) {
        self.server.process.stop().await;
        let refused = self.home.run(&[], &[]).await;
        assert_refused(&refused, words);
    }
}

fn assert_refused(refused: &crate::server::Ended, words: &[&str]) {
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for word in ["the database does not keep users apart"].iter().chain(words) {
        assert!(refused.stderr.contains(word), "{word} is not in:\n{}", refused.stderr);
    }
    assert!(!refused.stdout.contains("Ready."), "{}", refused.stdout);
}

#[tokio::test]
async fn a_role_above_the_policies_is_refused_with_the_remedy_which_helps() {
    let cluster = Cluster::new().await;
    cluster.server.remember("kept").await;
    for (role, attribute) in
        [("agent_service", "bypassrls"), ("agent_reader", "bypassrls"), ("agent_maintenance", "superuser")]
    {
        cluster.change(&format!("alter role {role} {attribute}")).await;
        let other = Home::new();
        let refused = other.run(&[], &[("DATABASE_URL", &cluster.url("postgres"))]).await;
        let remedy = format!("alter role {role} nosuperuser nobypassrls");
        assert_refused(&refused, &[&format!("the role {role} bypasses row-level security"), &remedy]);
        cluster.change(&remedy).await;
    }
    let other = Home::new();
    let server = other.serving(&[("DATABASE_URL", &cluster.url("postgres"))]).await;
    assert_eq!(server.remembered().await, ["kept"]);

    cluster.change("alter role agent_service bypassrls").await;
    cluster.expect_refusal(&["agent_service bypasses row-level security"]).await;
}

#[tokio::test]
async fn a_table_without_forced_policies_is_refused_by_its_name() {
    let cluster = Cluster::new().await;
    cluster.change("alter table memories no force row level security").await;
    cluster.change("alter table documents disable row level security").await;
    cluster
        .expect_refusal(&["not forced on", "memories", "documents", "alter table", "force row level security"])
        .await;
}

#[tokio::test]
async fn a_policy_of_the_right_name_that_lets_more_be_seen_is_refused() {
    let cluster = Cluster::new().await;
    cluster.change("alter policy own_rows on memories using (true)").await;
    cluster.expect_refusal(&["own_rows on memories"]).await;
}

#[tokio::test]
async fn a_table_of_later_days_without_policies_is_refused_as_well() {
    let cluster = Cluster::new().await;
    cluster.change("create table later (user_id text)").await;
    cluster.expect_refusal(&["not forced on later"]).await;
}

#[tokio::test]
async fn a_role_that_owns_a_table_is_refused() {
    let cluster = Cluster::new().await;
    cluster.change("alter table memory_history owner to agent_service").await;
    cluster.expect_refusal(&["the role agent_service owns memory_history"]).await;
}

#[tokio::test]
async fn a_login_that_may_not_act_as_the_roles_is_told_what_lets_it() {
    let cluster = Cluster::new().await;
    cluster.change("create role stranger login; create role half login; grant agent_service to half").await;
    let admin = cluster.url("postgres");
    for login in ["stranger", "half"] {
        let url = cluster.url(login);
        let service = [("DATABASE_URL", url.as_str())];
        // It does not even see whether the tables are up to date, which may be a matter of time.
        let home = Home::new();
        let server = home.listening(&service).await;
        let line = server.process.stderr.line("the database is not ready").await;
        assert!(line.contains("permission denied"), "{line}");
        assert_eq!(server.health().await.next().await, Some(ServingStatus::NotServing));
        server.process.stop().await;

        cluster.change(&format!("grant select on _sqlx_migrations to {login}")).await;
        let refused = home.run(&[], &service).await;
        let role = if login == "half" { "agent_maintenance" } else { "agent_service" };
        assert_refused(&refused, &[&format!("may not act as {role}"), "agent-local migrate", "DATABASE_ADMIN_URL"]);

        let migrated = home.run(&["migrate"], &[service[0], ("DATABASE_ADMIN_URL", &admin)]).await;
        assert_eq!(migrated.code, Some(0), "{migrated:?}");
        home.serving(&service).await.process.stop().await;
    }
}

#[tokio::test]
async fn a_reading_login_above_the_policies_is_refused_and_one_below_them_serves() {
    let cluster = Cluster::new().await;
    cluster.change("create role reading login; grant agent_reader to reading").await;
    let (url, read_url) = (cluster.url("postgres"), cluster.url("reading"));
    let variables = [("DATABASE_URL", url.as_str()), ("DATABASE_READ_URL", read_url.as_str())];
    let home = Home::new();
    let server = home.serving(&variables).await;
    server.remember("kept").await;
    assert_eq!(server.remembered().await, ["kept"]);
    server.process.stop().await;
    cluster.change("revoke agent_reader from reading").await;
    let refused = home.run(&[], &variables).await;
    assert_refused(&refused, &["may not act as agent_reader"]);
}
