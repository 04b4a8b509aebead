//! Which requests are calls at all.

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::body::Body;

/// What clients of gRPC and gRPC-Web send. A length is before each message, so parameters would have no meaning.
const CONTENT_TYPES: [&str; 6] = [
    "application/grpc",
    "application/grpc+proto",
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];

/// Refuses what no client of ours sends, which tonic over HTTP/2 would read as gRPC. That is more than tidy: a browser asks
/// before a page calls another origin, but not if the content is of a type that forms have, such as `text/plain`.
#[expect(clippy::result_large_err, reason = "the signature is that of tower-http")]
pub(super) fn admit<B>(request: &mut Request<B>) -> Result<(), Response<Body>> {
    if request.method() != Method::POST {
        return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, "POST"));
    }
    let is_call = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| CONTENT_TYPES.iter().any(|known| kind.as_bytes().eq_ignore_ascii_case(known.as_bytes())));
    if !is_call {
        return Err(refusal(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            header::ACCEPT,
            "application/grpc, application/grpc-web",
        ));
    }
    Ok(())
}

fn refusal(status: StatusCode, name: header::HeaderName, value: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_posts_of_grpc_and_grpc_web_are_calls() {
        let status = |method: Method, content_type: &'static str| {
            let mut request = Request::new(());
            *request.method_mut() = method;
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            admit(&mut request).err().map_or(200, |response| response.status().as_u16())
        };
        for known in CONTENT_TYPES {
            assert_eq!(status(Method::POST, known), 200, "{known}");
        }
        for other in ["text/plain", "application/json", "application/grpc+json", "application/grpcx", ""] {
            assert_eq!(status(Method::POST, other), 415, "{other}");
        }
        assert_eq!(status(Method::GET, "application/grpc"), 405);
    }
}
