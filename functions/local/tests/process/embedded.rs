//! The embedded Postgres: sockets, crashes, stale files.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use agent_service::postgres::embedded::{self, PORT};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    process::{Process, Sandbox, Signal, eventually, kill},
    server::{Server, USER},
};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Below a folder, without symbolic links, which have no mode of their own.
fn open_to_others(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        if !kind.is_symlink() && mode(&path) & 0o077 != 0 {
            found.push(path.clone());
        }
        if kind.is_dir() {
            found.extend(open_to_others(&path));
        }
    }
    found
}

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

#[tokio::test]
async fn everything_created_is_private_whatever_the_umask() {
    let sandbox = Sandbox::new();
    // The folder itself is the test's.
    let work = sandbox.work();
    set_mode(&work, 0o700);
    fs::write(work.join("notes.jsonl"), "{\"content\": \"a note\"}\n").unwrap();
    set_mode(&work.join("notes.jsonl"), 0o600);
    let server = Server::start(sandbox.command_with_umask("000", &[], &[])).await;
    server.health().await.wait_for_status(ServingStatus::Serving).await;
    let arguments = ["import", "--addr", &server.url, "--user", USER, "notes.jsonl"];
    let imported = Process::start(sandbox.command_with_umask("000", &arguments, &[])).wait().await;
    assert_eq!(imported.code, Some(0), "{imported:?}");
    let socket = embedded::socket_path(&sandbox.data()).unwrap().join(format!(".s.PGSQL.{PORT}"));
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    assert!(sandbox.path().join(".local/state/agent-service/import").is_dir());
    assert_eq!(open_to_others(sandbox.path()), [] as [PathBuf; 0]);
    server.process.stop().await;
    // Postgres makes files at its end too.
    assert_eq!(open_to_others(sandbox.path()), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn data_directory_that_others_may_write_is_refused() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.data()).unwrap();
    for mode in [0o777, 0o770, 0o722, 0o1777] {
        set_mode(&sandbox.data(), mode);
        let refused = sandbox.run(&[], &[]).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let expected = format!(
            "{} can be changed by other users (mode {mode:04o}): make it private with chmod 700, or set another AGENT_DATA_DIR",
            fs::canonicalize(sandbox.data()).unwrap().display()
        );
        assert!(refused.stderr.contains(&expected), "{}", refused.stderr);
        assert!(sandbox.data_names().is_empty(), "{:?}", sandbox.data_names());
    }
    // Others may look at its names only.
    set_mode(&sandbox.data(), 0o755);
    sandbox.start_serving(&[]).await.remember("works").await;
}

#[tokio::test]
async fn data_directory_that_others_may_replace_is_refused() {
    let sandbox = Sandbox::new();
    let above = sandbox.path().join("shared");
    fs::create_dir(&above).unwrap();
    let data = above.join("below/data");
    let variables = [("AGENT_DATA_DIR", data.to_str().unwrap())];
    set_mode(&above, 0o777);
    let refused = sandbox.run(&[], &variables).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let expected = format!("{} is above the data directory", fs::canonicalize(&above).unwrap().display());
    assert!(refused.stderr.contains(&expected) && refused.stderr.contains("chmod o-w"), "{}", refused.stderr);
    // As /tmp.
    set_mode(&above, 0o1777);
    sandbox.start_serving(&variables).await.remember("works").await;
}

#[tokio::test]
async fn files_of_versions_that_left_modes_to_the_umask_become_private() {
    let sandbox = Sandbox::new();
    sandbox.start_serving(&[]).await.process.stop().await;
    for name in ["lock", "postgres.log"] {
        set_mode(&sandbox.data().join(name), 0o666);
    }
    let runtime = |name: &String| name.starts_with("runtime-");
    let runtime = sandbox.data().join(sandbox.data_names().into_iter().find(runtime).unwrap());
    set_mode(&runtime, 0o777);
    fs::write(runtime.join("planted"), "").unwrap();
    let server = sandbox.start_serving(&[]).await;
    server.remember("works").await;
    assert_eq!(["lock", "postgres.log"].map(|name| mode(&sandbox.data().join(name))), [0o600, 0o600]);
    assert!(!runtime.join("planted").exists(), "a runtime that others could change was run");
    assert_eq!(mode(&runtime), 0o700);
    server.process.stop().await;

    let cluster = sandbox.data().join("postgres");
    set_mode(&cluster, 0o777);
    let refused = sandbox.run(&[], &[]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("postgres can be changed by other users (mode 0777)"), "{}", refused.stderr);
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn postgres_inherits_no_secrets() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.work().join(".env"), "DEEPSEEK_API_KEY=sk-in-a-file\nDEMO_MODE=true\n").unwrap();
    let secrets = [
        ("INTERNAL_API_KEY", "a key of other services"),
        ("LLM_API_KEY", "sk-in-the-environment"),
        ("SOMETHING_ELSE", "that nobody knows of"),
        ("TZ", "UTC"),
    ];
    let _server = sandbox.start_serving(&secrets).await;
    // Its children write their titles over theirs.
    let environment = fs::read(format!("/proc/{}/environ", sandbox.postmaster().unwrap())).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    let mut names: Vec<_> = environment.split('\0').filter_map(|variable| Some(variable.split_once('=')?.0)).collect();
    names.sort_unstable();
    assert_eq!(names, ["LC_ALL", "PATH", "TZ"]);
}
