//! Types generated from `proto/`, and their encoding on the wire.

pub mod chat_frame;
pub mod codec;

/// Messages, clients and servers of the package `agent.v1`. The server of `AgentService` streams [`ChatFrame`](chat_frame::ChatFrame)s where the proto
/// file says `ChatResponse`.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code; the comments of the proto files document the types"
)]
pub mod agent_v1 {
    tonic::include_proto!("agent.v1");
    include!(concat!(env!("OUT_DIR"), "/servers/agent.v1.rs"));
}

/// The serialized `FileDescriptorSet` of all proto files, for server reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
