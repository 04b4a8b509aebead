//! Rejects requests that are not gRPC calls, before any of them reaches tonic, and prepares those that are.

#[cfg(feature = "server")]
use std::{collections::HashSet, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
#[cfg(feature = "server")]
use prost::Message as _;

use super::text_body::TextBody;

#[cfg(feature = "server")]
pub(super) const GRPC_AND_GRPC_WEB: &[&str] = &[
    "application/grpc",
    "application/grpc+proto",
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];

/// Binary and text mode.
#[cfg(feature = "lambda")]
pub(super) const GRPC_WEB: &[&str] = &[
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];

/// Accepts a POST with one of the `known` content types. Security: a browser sends a CORS preflight before a page calls another
/// origin, but not for the content types of forms, such as `text/plain`, which tonic over HTTP/2 would read as gRPC.
///
/// Normalizes the header to the entry in `known`: HTTP allows any case and parameters, tonic-web does not. Parameters have no
/// meaning here, because messages are length-prefixed.
pub(super) fn require_grpc_post(
    method: &Method,
    headers: &mut HeaderMap,
    known: &'static [&'static str],
) -> Result<&'static str, Response<()>> {
    if method != Method::POST {
        return Err(rejection(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, HeaderValue::from_static("POST")));
    }
    let given = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let given = given.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let Some(content_type) = known.iter().find(|known| given.eq_ignore_ascii_case(known.as_bytes())) else {
        let accepted =
            HeaderValue::try_from(known.join(", ")).unwrap_or(HeaderValue::from_static("application/grpc-web"));
        return Err(rejection(StatusCode::UNSUPPORTED_MEDIA_TYPE, header::ACCEPT, accepted));
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(content_type)
}

#[cfg(feature = "server")]
pub(super) fn forbidden() -> Response<()> {
    empty(StatusCode::FORBIDDEN)
}

pub(super) fn not_found() -> Response<()> {
    empty(StatusCode::NOT_FOUND)
}

/// For other methods on what GET serves.
#[cfg(feature = "server")]
pub(super) fn read_only_resource() -> Response<()> {
    rejection(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, HeaderValue::from_static("GET, HEAD"))
}

fn empty(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

fn rejection(status: StatusCode, name: HeaderName, value: HeaderValue) -> Response<()> {
    let mut response = empty(status);
    response.headers_mut().insert(name, value);
    response
}

const WEB: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");
const WEB_TEXT: HeaderValue = HeaderValue::from_static("application/grpc-web-text+proto");
const WEB_TEXT_PREFIX: &str = "application/grpc-web-text";

/// How the response to a gRPC-Web request is encoded: in text if the request is, even where the client does not say what it
/// accepts, or if the client asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResponseMode {
    is_request_text: bool,
    accepts_text: bool,
}

impl ResponseMode {
    /// `content_type` is that of [`require_grpc_post`].
    pub(super) fn of(content_type: &str, headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        Self {
            is_request_text: content_type.starts_with(WEB_TEXT_PREFIX),
            accepts_text: accept.is_some_and(|accept| accept.starts_with(WEB_TEXT_PREFIX)),
        }
    }

    #[cfg(feature = "lambda")]
    pub(super) fn is_text(self) -> bool {
        self.is_request_text || self.accepts_text
    }

    /// tonic-web reads the mode of the response from `accept`. A text body is decoded behind it.
    pub(super) fn apply<B>(self, request: &mut Request<B>) {
        if self.is_request_text || self.accepts_text {
            request.headers_mut().insert(header::ACCEPT, WEB_TEXT);
        } else {
            request.headers_mut().remove(header::ACCEPT);
        }
        if self.is_request_text {
            request.headers_mut().insert(header::CONTENT_TYPE, WEB);
            request.extensions_mut().insert(TextBody);
        }
    }
}

/// The paths of calls, `/package.Service/Method`.
#[derive(Debug, Clone)]
#[cfg(feature = "server")]
pub struct RpcPaths(Arc<HashSet<String>>);

#[cfg(feature = "server")]
impl RpcPaths {
    /// All methods in these serialized `FileDescriptorSet`s.
    pub(super) fn from_descriptors(sets: &[&[u8]]) -> Result<Self, prost::DecodeError> {
        let mut paths = HashSet::new();
        for set in sets {
            for file in prost_types::FileDescriptorSet::decode(*set)?.file {
                for service in &file.service {
                    let names = service.method.iter().map(|method| method.name());
                    paths.extend(names.map(|method| format!("/{}.{}/{method}", file.package(), service.name())));
                }
            }
        }
        Ok(Self(Arc::new(paths)))
    }

    /// These methods of one service.
    #[must_use]
    pub fn of_service(name: &str, methods: &[&str]) -> Self {
        Self(Arc::new(methods.iter().map(|method| format!("/{name}/{method}")).collect()))
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.0.contains(path)
    }
}

#[cfg(test)]
#[cfg(feature = "server")]
mod tests {
    use super::*;

    fn filter(method: &Method, content_type: &'static str) -> Result<&'static str, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let result = require_grpc_post(method, &mut headers, GRPC_AND_GRPC_WEB);
        if let Ok(content_type) = result {
            assert_eq!(headers[header::CONTENT_TYPE], content_type, "the header is normalized");
        }
        result.map_err(|rejection| rejection.status().as_u16())
    }

    #[test]
    fn filter_accepts_only_grpc_posts() {
        for known in GRPC_AND_GRPC_WEB {
            assert_eq!(filter(&Method::POST, known), Ok(*known));
        }
        for other in ["text/plain", "application/json", "application/grpc+json", "application/grpcx", ""] {
            assert_eq!(filter(&Method::POST, other), Err(415), "{other}");
        }
        assert_eq!(filter(&Method::GET, "application/grpc"), Err(405));
    }

    #[test]
    fn content_type_matches_in_any_case_with_parameters() {
        for written in
            ["Application/gRPC-Web+Proto", "application/grpc-web+proto; charset=utf-8", "application/grpc-web+proto ;"]
        {
            assert_eq!(filter(&Method::POST, written), Ok("application/grpc-web+proto"), "{written}");
        }
    }
}
