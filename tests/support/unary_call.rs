//! Unary calls of a function.

use prost::Message;

use crate::lambda_runtime::{LambdaFunction, function_url_event, grpc_frame};

pub const GRPC_WEB: &str = "application/grpc-web+proto";

/// The response message, or `code message` of its status.
pub async fn call_unary<T: Message + Default>(
    function: &mut LambdaFunction,
    method: &str,
    request: &impl Message,
) -> Result<T, String> {
    let path = format!("/agent.v1.{method}");
    let response = function.answer(function_url_event(&path, GRPC_WEB, &grpc_frame(&request.encode_to_vec()))).await;
    let (frames, trailers) = response.frames();
    match trailers["grpc-status"].as_str() {
        "0" => Ok(frames.first().map(|frame| T::decode(frame.as_slice()).unwrap()).unwrap_or_default()),
        status => Err(format!("{status} {}", trailers.get("grpc-message").map_or("", String::as_str))),
    }
}
