//! Serves the web page at `/` from the files of `web/dist`, which are embedded in the binary.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::body::Body;

use super::answering::Answer;

struct PageFile {
    name: &'static str,
    hash: &'static str,
    plain: &'static [u8],
    gzip: &'static [u8],
}

/// `index.html` is also served at `/`.
static FILES: &[PageFile] = &include!(concat!(env!("OUT_DIR"), "/web_page.rs"));

/// Scripts, styles and images come from this server only, and trusted types exclude HTML made from text. Requests may go to any
/// HTTPS address, because the user can point the page at another server.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self' https: http://localhost:* http://*.localhost:* http://127.0.0.1:*; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// `no-cache` makes the browser revalidate every file, so that it never mixes files of two versions.
const HEADERS: [(header::HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-cache"),
    (header::VARY, "accept-encoding"),
];

#[derive(Debug, Clone, Copy)]
pub(super) struct Page {
    pub(super) is_enabled: bool,
}

impl Answer for Page {
    fn answer(&self, request: &Request<Body>) -> Option<Response<Body>> {
        let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
        let file = file_at(request.uri().path()).filter(|_| self.is_enabled && is_read)?;
        Some(respond(file, request.method(), request.headers()))
    }
}

pub(super) fn has_file(path: &str) -> bool {
    file_at(path).is_some()
}

fn file_at(path: &str) -> Option<&'static PageFile> {
    let name = match path.strip_prefix('/')? {
        "" => "index.html",
        name => name,
    };
    FILES.iter().find(|file| file.name == name)
}

fn respond(file: &PageFile, method: &Method, request_headers: &HeaderMap) -> Response<Body> {
    let is_gzip = accepts_gzip(request_headers);
    // The encoded representation has its own tag (RFC 9110, section 8.8.3).
    let tag = format!("\"{}{}\"", file.hash, if is_gzip { "-gz" } else { "" });
    let is_cached = request_headers.get_all(header::IF_NONE_MATCH).iter().any(|known| {
        let known = known.to_str().unwrap_or_default();
        known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag)
    });
    let bytes = if is_gzip { file.gzip } else { file.plain };
    let body = if is_cached || method == Method::HEAD {
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
    if is_cached {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(file.name)));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    if is_gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn accepts_gzip(request_headers: &HeaderMap) -> bool {
    request_headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            let is_excluded = weight.trim().strip_prefix("q=").is_some_and(|q| q.trim().parse() == Ok(0.0));
            name.trim().eq_ignore_ascii_case("gzip") && !is_excluded
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
    fn every_file_has_a_content_type() {
        assert!(file_at("/").is_some_and(|file| file.name == "index.html"));
        for file in FILES {
            assert_ne!(content_type(file.name), "application/octet-stream", "{}", file.name);
        }
        assert!(file_at("/../Cargo.toml").is_none() && file_at("").is_none() && file_at("/index.html/").is_none());
    }

    #[test]
    fn gzip_is_sent_only_if_accepted() {
        let accepts = |value| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            accepts_gzip(&headers)
        };
        assert!(accepts("gzip, deflate, br") && accepts("br;q=1.0, GZIP;q=0.5"));
        assert!(!accepts("br") && !accepts("gzip;q=0") && !accepts("") && !accepts_gzip(&HeaderMap::new()));
    }
}
