//! Compiles `proto/` to Rust types and a descriptor for reflection (without `protoc`), locates the archives of the embedded
//! Postgres, and compresses the web page.

#![forbid(unsafe_code)]

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use flate2::{Compression, write::GzEncoder};
use prost::Message as _;

const PROTOS: [&str; 3] =
    ["proto/agent_service.proto", "proto/conversation_service.proto", "proto/memory_service.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=infra/migrations");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(embedded_postgres_archive)");
    if env::var_os("CARGO_FEATURE_EMBEDDED_POSTGRES").is_some() {
        locate_postgres_archives()?;
    }
    if env::var_os("CARGO_FEATURE_SERVER").is_some() {
        embed_web_page()?;
    }
    compile_protos()
}

/// Compresses the files of `web/dist` and writes a table of them for `shared/transport/server/page.rs`.
fn embed_web_page() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=web/dist");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let dist = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("web/dist");
    let mut table = String::from("[\n");
    let mut names: Vec<_> =
        fs::read_dir(&dist)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_, io::Error>>()?;
    names.sort();
    for name in names {
        let path = dist.join(&name);
        let name = name.into_string().map_err(|_| "web/dist contains a file whose name is not UTF-8")?;
        let bytes = fs::read(&path)?;
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let packed = out.join(format!("{name}.gz"));
        let mut encoder = GzEncoder::new(fs::File::create(&packed)?, Compression::best());
        encoder.write_all(&bytes)?;
        encoder.finish()?;
        writeln!(
            table,
            "PageFile {{ name: {name:?}, hash: {hash:?}, plain: include_bytes!({path:?}), gzip: include_bytes!({packed:?}) }},",
            hash = format!("{:016x}", hasher.finish()),
        )?;
    }
    table.push(']');
    fs::write(out.join("web_page.rs"), table)?;
    Ok(())
}

fn compile_protos() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    fs::write(out.join("descriptor.bin"), descriptors.encode_to_vec())?;
    let builder = || {
        tonic_prost_build::configure()
            .build_transport(false)
            // A canonical encoding: the fingerprint of a request is the hash of its bytes.
            .btree_map(".")
            .codec_path("crate::proto::codec::ProtobufCodec")
    };
    builder().build_server(false).compile_fds(descriptors.clone())?;
    // Servers send chat frames that are already encoded, clients receive them as messages.
    let servers = out.join("servers");
    fs::create_dir_all(&servers)?;
    builder()
        .build_client(false)
        .extern_path(".agent.v1", "crate::proto::agent_v1")
        .extern_path(".agent.v1.ChatResponse", "crate::proto::chat_frame::ChatFrame")
        .out_dir(servers)
        .compile_fds(descriptors)?;
    Ok(())
}

/// Passes the paths of the archives of Postgres and pgvector to the module `embedded`.
///
/// Only some targets have a crate of archives. The others are built without that module, and starting without `DATABASE_URL`
/// is an error.
fn locate_postgres_archives() -> Result<(), Box<dyn Error>> {
    /// The targets with a crate of archives in `Cargo.toml`.
    const TARGETS: [&str; 4] =
        ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "x86_64-apple-darwin", "aarch64-apple-darwin"];

    // Pins the version of the archives.
    println!("cargo:rerun-if-changed=Cargo.toml");
    let target = env::var("TARGET")?;
    if !TARGETS.contains(&target.as_str()) {
        return Ok(());
    }

    // `cargo metadata` needs the development dependencies as well, which a plain `cargo build` on a fresh machine has not
    // fetched: only then the network is needed.
    let folder = archive_folder(&target, true)
        .or_else(|_| archive_folder(&target, false))
        .map_err(|error| format!("failed to locate the Postgres archives for {target}: {error}"))?;
    println!("cargo:rustc-cfg=embedded_postgres_archive");
    println!("cargo:rustc-env=EMBEDDED_POSTGRES_VERSION={}-{target}", archive_version(&folder)?);
    for (variable, archive) in [
        ("EMBEDDED_POSTGRES_RUNTIME", "pglite-runtime.tar.zst".to_owned()),
        ("EMBEDDED_POSTGRES_PGVECTOR", format!("pglite-ext-pgvector-{target}.tar.gz")),
    ] {
        let archive = folder.join(archive);
        println!("cargo:rerun-if-changed={}", archive.display());
        println!("cargo:rustc-env={variable}={}", archive.display());
    }
    Ok(())
}

/// The folder `lib` of the crate of archives. The crate exports no path, so `cargo metadata` is asked for it.
fn archive_folder(target: &str, offline: bool) -> Result<PathBuf, Box<dyn Error>> {
    let mut cargo = Command::new(env::var_os("CARGO").ok_or("CARGO is not set")?);
    cargo.args(["metadata", "--format-version=1", "--features=embedded-postgres", "--filter-platform", target]);
    if offline {
        cargo.arg("--offline");
    }
    let output = cargo.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    // A JSON parser would be one more build dependency for one field; finding the archive proves the path right.
    let folder = String::from_utf8_lossy(&output.stdout)
        .split("\"manifest_path\":\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .map(|manifest| Path::new(manifest).with_file_name("lib"))
        .find(|folder| folder.join(format!("pglite-ext-pgvector-{target}.tar.gz")).is_file());
    folder.ok_or_else(|| "cargo metadata does not list the crate".into())
}

/// Read from the manifest, because the folder name of a vendored crate has no version.
fn archive_version(folder: &Path) -> Result<String, Box<dyn Error>> {
    let manifest = fs::read_to_string(folder.with_file_name("Cargo.toml"))?;
    let version = manifest.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    Ok(version.ok_or("the manifest of the archive crate has no version")?.to_owned())
}
