//! Compiles the protos of the suite from its Go module, so that this repository holds no copy.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const PACKAGE: &str = "connectrpc.conformance.v1";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=version");
    println!("cargo:rerun-if-changed=build.rs");
    let protos = module_folder(fs::read_to_string("version")?.trim())?.join("proto");
    let file = |name: &str| format!("{}/{name}.proto", PACKAGE.replace('.', "/"));
    let descriptors = protox::compile([file("service"), file("server_compat")], [&protos])?;

    let out = PathBuf::from(env::var("OUT_DIR")?);
    let folder = |name: &str| -> std::io::Result<PathBuf> {
        fs::create_dir_all(out.join(name))?;
        Ok(out.join(name))
    };
    let server = |codec: &str, folder: &Path| {
        tonic_prost_build::configure().build_client(false).build_transport(false).codec_path(codec).out_dir(folder)
    };
    let mut names = prost_build::Config::new();
    names.enable_type_names().type_name_domain(["."], "type.googleapis.com");
    server("agent_service::proto::codec::ProtobufCodec", &folder("ours")?)
        .compile_fds_with_config(descriptors.clone(), names)?;
    // The same service with tonic's codec and the messages above.
    server("tonic_prost::ProstCodec", &folder("bare")?)
        .extern_path(format!(".{PACKAGE}"), "crate::proto")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The module cache of Go; downloads the suite if needed.
fn module_folder(version: &str) -> Result<PathBuf, Box<dyn Error>> {
    let module = format!("connectrpc.com/conformance@{version}");
    let output = Command::new("go")
        .args(["mod", "download", "-json", &module])
        .output()
        .map_err(|error| format!("Go is needed for {module}: {error}"))?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("go mod download: {}", String::from_utf8_lossy(&output.stderr)))?;
    let folder = answer["Dir"].as_str().ok_or_else(|| format!("go mod download: {}", answer["Error"]))?;
    Ok(folder.into())
}
