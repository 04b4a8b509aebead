//! Which requests are calls at all.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

/// What clients of gRPC and gRPC-Web send.
#[cfg(feature = "server")]
pub(super) const GRPC_AND_GRPC_WEB: &[&str] = &[
    "application/grpc",
    "application/grpc+proto",
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];

/// What clients of gRPC-Web send, in binary and in text mode.
#[cfg(feature = "lambda")]
pub(super) const GRPC_WEB: &[&str] = &[
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];

/// Refuses what no client of ours sends, which tonic over HTTP/2 would read as gRPC. That is more than tidy: a browser asks
/// before a page calls another origin, but not if the content is of a type that forms have, such as `text/plain`.
///
/// The content type of a call is one of `known`, and is written as it stands there: HTTP knows no case and allows parameters
/// (which would have no meaning, because a length is before each message), but tonic-web knows these words alone.
pub(super) fn require_grpc_post(
    method: &Method,
    headers: &mut HeaderMap,
    known: &'static [&'static str],
) -> Result<&'static str, Response<()>> {
    if method != Method::POST {
        return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, HeaderValue::from_static("POST")));
    }
    let given = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let given = given.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let Some(content_type) = known.iter().find(|known| given.eq_ignore_ascii_case(known.as_bytes())) else {
        let accepted =
            HeaderValue::try_from(known.join(", ")).unwrap_or(HeaderValue::from_static("application/grpc-web"));
        return Err(refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, header::ACCEPT, accepted));
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(content_type)
}

fn refusal(status: StatusCode, name: HeaderName, value: HeaderValue) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(name, value);
    response
}

#[cfg(test)]
#[cfg(feature = "server")]
mod tests {
    use super::*;

    fn admitted(method: &Method, content_type: &'static str) -> Result<&'static str, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let admitted = require_grpc_post(method, &mut headers, GRPC_AND_GRPC_WEB);
        if let Ok(content_type) = admitted {
            assert_eq!(headers[header::CONTENT_TYPE], content_type, "it is written as it is known");
        }
        admitted.map_err(|refused| refused.status().as_u16())
    }

    #[test]
    fn only_posts_of_grpc_and_grpc_web_are_calls() {
        for known in GRPC_AND_GRPC_WEB {
            assert_eq!(admitted(&Method::POST, known), Ok(*known));
        }
        for other in ["text/plain", "application/json", "application/grpc+json", "application/grpcx", ""] {
            assert_eq!(admitted(&Method::POST, other), Err(415), "{other}");
        }
        assert_eq!(admitted(&Method::GET, "application/grpc"), Err(405));
    }

    #[test]
    fn a_content_type_is_known_in_any_case_and_with_parameters() {
        for written in
            ["Application/gRPC-Web+Proto", "application/grpc-web+proto; charset=utf-8", "application/grpc-web+proto ;"]
        {
            assert_eq!(admitted(&Method::POST, written), Ok("application/grpc-web+proto"), "{written}");
        }
    }
}
