//! Builds tonic responses from response definitions.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;
use prost_types::Any;
use tonic::{Code, Response, Status, metadata::MetadataMap};

use crate::{
    proto::{
        self, ConformancePayload, Header, UnaryResponseDefinition, conformance_payload::RequestInfo,
        unary_response_definition,
    },
    trailers::Trailers,
};

/// Reports what arrived of a call.
pub fn request_info(metadata: MetadataMap, requests: Vec<Any>) -> RequestInfo {
    let headers = metadata.into_headers();
    let timeout_ms = headers.get("grpc-timeout").and_then(|value| milliseconds(value.to_str().ok()?));
    let request_headers = headers
        .keys()
        .map(|name| Header {
            name: name.to_string(),
            value: headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into()).collect(),
        })
        .collect();
    RequestInfo { request_headers, timeout_ms, requests, connect_get_info: None }
}

/// A `grpc-timeout` in milliseconds, rounded down.
fn milliseconds(timeout: &str) -> Option<i64> {
    let (digits, unit) = timeout.split_at_checked(timeout.len().checked_sub(1)?)?;
    let amount: i64 = digits.parse().ok()?;
    Some(match unit {
        "H" => amount * 3_600_000,
        "M" => amount * 60_000,
        "S" => amount * 1000,
        "m" => amount,
        "u" => amount / 1000,
        "n" => amount / 1_000_000,
        _ => return None,
    })
}

/// The response of a call with one message or an error.
pub fn single(
    definition: Option<UnaryResponseDefinition>,
    info: RequestInfo,
) -> Result<Response<ConformancePayload>, Status> {
    let definition = definition.unwrap_or_default();
    let (headers, trailers) = (header_map(definition.response_headers)?, header_map(definition.response_trailers)?);
    let data = match definition.response {
        Some(unary_response_definition::Response::Error(error)) => {
            // Trailers-only response: headers and trailers are one.
            let mut metadata = headers;
            metadata.extend(trailers);
            return Err(status(error, Some(&info), metadata));
        }
        Some(unary_response_definition::Response::ResponseData(data)) => data,
        None => Vec::new(),
    };
    Ok(response(headers, trailers, ConformancePayload { data, request_info: Some(info) }))
}

pub fn response<T>(headers: HeaderMap, trailers: HeaderMap, message: T) -> Response<T> {
    let mut response = Response::new(message);
    *response.metadata_mut() = MetadataMap::from_headers(headers);
    response.extensions_mut().insert(Trailers(trailers));
    response
}

/// An error that reports what arrived, unless an earlier message did.
pub fn status(error: proto::Error, info: Option<&RequestInfo>, metadata: HeaderMap) -> Status {
    let message = error.message.unwrap_or_default();
    let mut details = error.details;
    details.extend(info.map(any));
    let encoded = tonic_types::Status { code: error.code, message: message.clone(), details }.encode_to_vec();
    Status::with_details_and_metadata(
        Code::from_i32(error.code),
        message,
        Bytes::from(encoded),
        MetadataMap::from_headers(metadata),
    )
}

pub fn any<M: prost::Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Values of `-bin` headers are base64 on both sides.
pub fn header_map(headers: Vec<Header>) -> Result<HeaderMap, Status> {
    let mut map = HeaderMap::new();
    for header in headers {
        let malformed = || Status::invalid_argument(format!("{:?} is no header", header.name));
        let name: HeaderName = header.name.parse().map_err(|_| malformed())?;
        for value in &header.value {
            map.append(name.clone(), HeaderValue::from_str(value).map_err(|_| malformed())?);
        }
    }
    Ok(map)
}
