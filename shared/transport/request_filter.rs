//! Rejects requests that are not gRPC calls, before any of them reaches tonic.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

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

fn rejection(status: StatusCode, name: HeaderName, value: HeaderValue) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(name, value);
    response
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
