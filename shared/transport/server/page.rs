//! The web page at `/`: the files of `web/dist`, which the binary carries. It calls the services as any other page does.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::Either;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::body::Body;
use tower::{Layer, Service};

/// A file of the page.
struct File {
    name: &'static str,
    hash: &'static str,
    plain: &'static [u8],
    /// By gzip.
    packed: &'static [u8],
}

/// All of them; that of the name `index.html` is the page itself.
static FILES: &[File] = &include!(concat!(env!("OUT_DIR"), "/web_page.rs"));

/// What the page may do. Scripts, styles and pictures come from here alone, and nothing in the page can become a script: HTML is
/// nowhere made from text. Calls may go to this server and to whatever address the user sets, because the page serves those who
/// have the service elsewhere as well.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self' https: http://localhost:* http://127.0.0.1:*; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// Of every file. A browser asks each time whether it has changed, so that a new server never meets half an old page.
const HEADERS: [(header::HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-cache"),
    (header::VARY, "accept-encoding"),
];

/// Answers whoever asks for a file of the page; everything else goes on.
#[derive(Debug, Clone)]
pub(super) struct PageLayer {
    pub(super) is_on: bool,
}

impl<S> Layer<S> for PageLayer {
    type Service = PageService<S>;

    fn layer(&self, inner: S) -> PageService<S> {
        PageService { inner, is_on: self.is_on }
    }
}

/// The service of [`PageLayer`].
#[derive(Debug, Clone)]
pub(super) struct PageService<S> {
    inner: S,
    is_on: bool,
}

impl<S> Service<Request<Body>> for PageService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_asked = self.is_on && (request.method() == Method::GET || request.method() == Method::HEAD);
        match is_asked.then(|| file_at(request.uri().path())).flatten() {
            Some(file) => Either::Left(ready(Ok(answer(file, request.method(), request.headers())))),
            None => Either::Right(self.inner.call(request)),
        }
    }
}

fn file_at(path: &str) -> Option<&'static File> {
    let name = match path.strip_prefix('/')? {
        "" => "index.html",
        name => name,
    };
    FILES.iter().find(|file| file.name == name)
}

fn answer(file: &File, method: &Method, asked: &HeaderMap) -> Response<Body> {
    let is_packed = accepts_gzip(asked);
    // What is packed is another representation, with a tag of its own (RFC 9110, section 8.8.3).
    let tag = format!("\"{}{}\"", file.hash, if is_packed { "-gz" } else { "" });
    let is_known = asked.get_all(header::IF_NONE_MATCH).iter().any(|known| {
        let known = known.to_str().unwrap_or_default();
        known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag)
    });
    let bytes = if is_packed { file.packed } else { file.plain };
    let body = if is_known || method == Method::HEAD {
        Body::empty()
    } else {
        Body::new(http_body_util::Full::new(Bytes::from_static(bytes)))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(header::ETAG, tag);
    }
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(file.name)));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    if is_packed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Whether the client names gzip and does not refuse it by `q=0`.
fn accepts_gzip(asked: &HeaderMap) -> bool {
    asked
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            let is_refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.trim().parse() == Ok(0.0));
            name.trim().eq_ignore_ascii_case("gzip") && !is_refused
        })
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_type_that_browsers_take() {
        assert!(file_at("/").is_some_and(|file| file.name == "index.html"));
        for file in FILES {
            assert_ne!(content_type(file.name), "application/octet-stream", "{}", file.name);
        }
        assert!(file_at("/../Cargo.toml").is_none() && file_at("").is_none() && file_at("/index.html/").is_none());
    }

    #[test]
    fn gzip_is_sent_to_whoever_takes_it() {
        let accepts = |value| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            accepts_gzip(&headers)
        };
        assert!(accepts("gzip, deflate, br") && accepts("br;q=1.0, GZIP;q=0.5"));
        assert!(!accepts("br") && !accepts("gzip;q=0") && !accepts("") && !accepts_gzip(&HeaderMap::new()));
    }
}
