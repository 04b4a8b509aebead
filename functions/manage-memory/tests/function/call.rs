//! Calls with one answer, to a function.

use prost::Message;

use crate::double::{Function, event, framed};

pub const GRPC_WEB: &str = "application/grpc-web+proto";

/// The message of the answer, or its status in words.
pub async fn call<T: Message + Default>(
    function: &mut Function,
    method: &str,
    request: &impl Message,
) -> Result<T, String> {
    let path = format!("/agent.v1.{method}");
    let answer = function.answer(event(&path, GRPC_WEB, &framed(&request.encode_to_vec()))).await;
    let (frames, trailers) = answer.frames();
    match trailers["grpc-status"].as_str() {
        "0" => Ok(frames.first().map(|frame| T::decode(frame.as_slice()).unwrap()).unwrap_or_default()),
        status => Err(format!("{status} {}", trailers.get("grpc-message").map_or("", String::as_str))),
    }
}
