//! Types generated from `proto/`.

/// Messages and services of the package `agent.v1`.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the comments of the proto files document the types"
)]
pub mod agent_v1 {
    tonic::include_proto!("agent.v1");
}

/// The serialised `FileDescriptorSet` of all proto files, for server reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
