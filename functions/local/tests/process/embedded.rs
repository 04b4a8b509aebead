//! What a server without a `DATABASE_URL` relies on.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use agent_service::postgres::embedded::{self, PORT};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::server::{Home, Signal, eventually, kill};

#[tokio::test]
async fn a_data_directory_too_long_for_a_socket_works() {
    let home = Home::new();
    let data = home.path().join("long".repeat(40)).join("with, comma");
    let variables = [("AGENT_DATA_DIR", data.to_str().unwrap())];
    let server = home.serving(&variables).await;
    server.remember("kept").await;
    let socket = embedded::socket_path(&data).unwrap();
    assert!(!socket.starts_with(home.path()), "{socket:?}");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o700);
    server.process.stop().await;
    assert!(!socket.exists(), "a place among the temporary files is tidied up");

    // Somebody else's directory of that name would let them read along; a link stands for it here.
    std::os::unix::fs::symlink(home.path(), &socket).unwrap();
    let refused = home.run(&[], &variables).await;
    fs::remove_file(&socket).unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("is not a directory of this user"), "{}", refused.stderr);
}

#[tokio::test]
async fn an_interrupted_first_start_is_repeated_and_its_leftovers_are_removed() {
    let home = Home::new();
    let server = home.listening(&[]).await;
    server.process.stdout.line("Making an empty database").await;
    server.process.kill().await;
    let server = home.serving(&[]).await;
    let told = server.process.stdout.so_far();
    assert!(told.contains("Making an empty database") && !told.contains("Unpacking"), "{told}");
    server.process.stop().await;

    // As if the power had failed during initdb and during unpacking.
    let half = home.data().join("partial-1-1");
    fs::rename(home.data().join("postgres"), &half).unwrap();
    fs::remove_dir_all(half.join("base")).unwrap();
    fs::create_dir(home.data().join("partial-2-2")).unwrap();
    fs::create_dir(home.data().join("runtime-0.0.1-old")).unwrap();
    let server = home.serving(&[]).await;
    server.remember("works").await;
    let mut names = home.data_names();
    let runtime = names.remove(3);
    assert_eq!(names, ["lock", "postgres", "postgres.log", "socket"]);
    assert!(runtime.starts_with("runtime-") && runtime != "runtime-0.0.1-old", "{runtime}");
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn postgres_ends_in_order_when_its_server_is_killed() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    let pid = home.postmaster().unwrap();
    assert!(Path::new("/proc").join(pid.to_string()).exists());
    server.process.kill().await;
    // Postgres removes this file at the end of an orderly shutdown only.
    eventually("postmaster.pid is removed", || async { home.postmaster().is_none() }).await;
    let socket = embedded::socket_path(&home.data()).unwrap();
    assert!(!socket.join(format!(".s.PGSQL.{PORT}")).exists());
}

#[tokio::test]
async fn a_postgres_that_dies_makes_the_server_not_serving_and_is_reported() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    let mut health = server.health().await;
    health.becomes(ServingStatus::Serving).await;
    kill(home.postmaster().unwrap(), Signal::KILL);
    health.becomes(ServingStatus::NotServing).await;
    server.process.stderr.line("the embedded Postgres has ended on its own").await;
    server.process.stop().await;
    home.serving(&[]).await.remember("works").await;
}

#[tokio::test]
async fn stale_files_with_the_process_id_of_somebody_else_do_not_prevent_a_start() {
    let home = Home::new();
    home.serving(&[]).await.process.stop().await;
    // Process 1 lives, and is no Postgres of this directory.
    let pid_file = "1\n/elsewhere\n0\n5432\n/elsewhere\n\n0 0\nready   \n";
    fs::write(home.data().join("postgres/postmaster.pid"), pid_file).unwrap();
    let socket = embedded::socket_path(&home.data()).unwrap();
    fs::create_dir_all(&socket).unwrap();
    fs::write(socket.join(format!(".s.PGSQL.{PORT}")), "").unwrap();
    fs::write(socket.join(format!(".s.PGSQL.{PORT}.lock")), "1\n/elsewhere\n0\n5432\n/elsewhere\n").unwrap();
    home.serving(&[]).await.remember("works").await;
}

#[tokio::test]
async fn a_postgres_that_does_not_start_ends_the_server_with_what_it_said() {
    let home = Home::new();
    home.serving(&[]).await.process.stop().await;
    fs::write(home.data().join("postgres/postgresql.auto.conf"), "no_such_setting = on\n").unwrap();
    let ended = home.run(&[], &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("no_such_setting"), "{}", ended.stderr);
}
