//! The embedded Postgres: sockets, crashes, stale files.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use agent_service::postgres::embedded::{self, PORT};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::process::{Sandbox, Signal, eventually, kill};

#[tokio::test]
async fn data_directory_too_long_for_socket_works() {
    let sandbox = Sandbox::new();
    let data = sandbox.path().join("long".repeat(40)).join("with, comma");
    let variables = [("AGENT_DATA_DIR", data.to_str().unwrap())];
    let server = sandbox.start_serving(&variables).await;
    server.remember("kept").await;
    let socket = embedded::socket_path(&data).unwrap();
    assert!(!socket.starts_with(sandbox.path()), "{socket:?}");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o700);
    server.process.stop().await;
    assert!(!socket.exists(), "the socket directory was not removed");

    // A socket directory of another user could intercept the connection; a symlink stands for it.
    std::os::unix::fs::symlink(sandbox.path(), &socket).unwrap();
    let rejected = sandbox.run(&[], &variables).await;
    fs::remove_file(&socket).unwrap();
    assert_eq!(rejected.code, Some(1), "{rejected:?}");
    assert!(rejected.stderr.contains("is not a directory of this user"), "{}", rejected.stderr);
}

#[tokio::test]
async fn interrupted_first_start_is_repeated_without_leftovers() {
    let sandbox = Sandbox::new();
    let server = sandbox.start_listening(&[]).await;
    server.process.stdout.line("Creating an empty database").await;
    server.process.kill().await;
    let server = sandbox.start_serving(&[]).await;
    let stdout = server.process.stdout.so_far();
    assert!(stdout.contains("Creating an empty database") && !stdout.contains("Unpacking"), "{stdout}");
    server.process.stop().await;

    // As after a power failure during initdb and during unpacking.
    let half = sandbox.data().join("partial-1-1");
    fs::rename(sandbox.data().join("postgres"), &half).unwrap();
    fs::remove_dir_all(half.join("base")).unwrap();
    fs::create_dir(sandbox.data().join("partial-2-2")).unwrap();
    fs::create_dir(sandbox.data().join("runtime-0.0.1-old")).unwrap();
    let server = sandbox.start_serving(&[]).await;
    server.remember("works").await;
    let mut names = sandbox.data_names();
    let runtime = names.remove(3);
    assert_eq!(names, ["lock", "postgres", "postgres.log", "socket"]);
    assert!(runtime.starts_with("runtime-") && runtime != "runtime-0.0.1-old", "{runtime}");
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn postgres_shuts_down_gracefully_when_server_is_killed() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    let pid = sandbox.postmaster().unwrap();
    assert!(Path::new("/proc").join(pid.to_string()).exists());
    server.process.kill().await;
    // Postgres removes this file only at the end of a graceful shutdown.
    eventually("postmaster.pid is removed", || async { sandbox.postmaster().is_none() }).await;
    let socket = embedded::socket_path(&sandbox.data()).unwrap();
    assert!(!socket.join(format!(".s.PGSQL.{PORT}")).exists());
}

#[tokio::test]
async fn server_reports_not_serving_when_postgres_dies() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    let mut health = server.health().await;
    health.wait_for_status(ServingStatus::Serving).await;
    kill(sandbox.postmaster().unwrap(), Signal::KILL);
    health.wait_for_status(ServingStatus::NotServing).await;
    server.process.stderr.line("the embedded Postgres exited unexpectedly").await;
    server.process.stop().await;
    sandbox.start_serving(&[]).await.remember("works").await;
}

#[tokio::test]
async fn stale_pid_files_do_not_prevent_start() {
    let sandbox = Sandbox::new();
    sandbox.start_serving(&[]).await.process.stop().await;
    // Process 1 exists, and is no Postgres.
    let pid_file = "1\n/elsewhere\n0\n5432\n/elsewhere\n\n0 0\nready   \n";
    fs::write(sandbox.data().join("postgres/postmaster.pid"), pid_file).unwrap();
    let socket = embedded::socket_path(&sandbox.data()).unwrap();
    fs::create_dir_all(&socket).unwrap();
    fs::write(socket.join(format!(".s.PGSQL.{PORT}")), "").unwrap();
    fs::write(socket.join(format!(".s.PGSQL.{PORT}.lock")), "1\n/elsewhere\n0\n5432\n/elsewhere\n").unwrap();
    sandbox.start_serving(&[]).await.remember("works").await;
}

#[tokio::test]
async fn server_exits_with_postgres_output_when_it_fails_to_start() {
    let sandbox = Sandbox::new();
    sandbox.start_serving(&[]).await.process.stop().await;
    fs::write(sandbox.data().join("postgres/postgresql.auto.conf"), "no_such_setting = on\n").unwrap();
    let output = sandbox.run(&[], &[]).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("no_such_setting"), "{}", output.stderr);
}
