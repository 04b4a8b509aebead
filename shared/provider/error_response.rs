//! Error responses of OpenAI-compatible APIs, in their various shapes, and transport errors.

use std::{error::Error, io, time::Duration};

use reqwest::{Response, header::HeaderMap};
use serde_json::Value;

use crate::error::with_causes;

const MAX_ERROR_BYTES: usize = 64 * 1024;
/// The status matters most, so the body is not worth a longer wait.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_CODE_CHARS: usize = 64;

#[derive(Debug)]
pub(crate) struct ErrorResponse {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) report: ErrorReport,
}

impl ErrorResponse {
    pub(crate) async fn read(mut response: Response) -> Self {
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers());
        let mut body = Vec::new();
        let reading = async {
            while let Ok(Some(bytes)) = response.chunk().await {
                body.extend_from_slice(&bytes);
                if body.len() > MAX_ERROR_BYTES {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(ERROR_BODY_TIMEOUT, reading).await;
        Self { status, retry_after, report: ErrorReport::from_body(&body) }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ErrorReport {
    pub(crate) code: Option<String>,
    /// A numeric code, which is an HTTP status.
    pub(crate) status: Option<u16>,
    pub(crate) kind: Option<String>,
    /// In lower case, to classify errors without a code. It may quote the question: never log it or pass it on.
    pub(crate) message: String,
}

impl ErrorReport {
    /// The error is in `error`, or with some servers at the top level.
    pub(crate) fn from_body(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => Self::from_error(value.get("error").filter(|error| !error.is_null()).unwrap_or(&value)),
            Err(_) => Self { message: String::from_utf8_lossy(body).to_lowercase(), ..Self::default() },
        }
    }

    /// An object, or with some servers a string.
    pub(crate) fn from_error(error: &Value) -> Self {
        let text = |name: &str| error[name].as_str().filter(|text| !text.is_empty()).map(sanitize_code);
        let message = error.as_str().or(error["message"].as_str()).or(error["detail"].as_str()).unwrap_or_default();
        Self {
            code: text("code"),
            status: error["code"].as_u64().and_then(|code| u16::try_from(code).ok()),
            kind: text("type"),
            message: message.to_lowercase(),
        }
    }
}

/// Clients see the code: no control characters, and a bounded length.
fn sanitize_code(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_CODE_CHARS).collect()
}

/// `Retry-After` in seconds or as an HTTP date (RFC 9110, section 10.2.3), or the finer `retry-after-ms` of OpenAI.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(milliseconds) = text("retry-after-ms").and_then(|value| value.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(milliseconds / 1e3).ok();
    }
    let value = text("retry-after")?;
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    std::time::SystemTime::from(at).duration_since(std::time::SystemTime::now()).ok()
}

/// `None` = the body is longer than `max_bytes`.
pub(crate) async fn read_bounded_body(
    response: &mut Response,
    max_bytes: usize,
) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > max_bytes {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body))
}

/// A call without a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransportProblem {
    pub(crate) is_timeout: bool,
    pub(crate) code: &'static str,
    /// For the log, without the URL, which could hold a key.
    pub(crate) detail: String,
}

pub(crate) fn transport_problem(error: reqwest::Error) -> TransportProblem {
    let error = error.without_url();
    let (is_timeout, is_connect) = (error.is_timeout(), error.is_connect());
    let detail = with_causes(&error);
    let refused = std::iter::successors(error.source(), |error| (*error).source())
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    let says = |words: &[&str]| words.iter().any(|word| detail.contains(word));
    let word = match () {
        () if refused => "connection_refused",
        () if is_connect && says(&["dns", "lookup"]) => "dns",
        () if is_connect && says(&["certificate", "tls", "TLS", "InvalidContentType", "handshake"]) => "tls",
        () if is_connect && is_timeout => "connect_timeout",
        () if is_connect => "no_connection",
        () if is_timeout => "timeout",
        () => "connection_lost",
    };
    TransportProblem { is_timeout, code: word, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_report_reads_all_known_shapes() {
        for (body, code, status, kind) in [
            (r#"{"error":{"message":"M","type":"t","param":null,"code":"c"}}"#, Some("c"), None, Some("t")),
            (r#"{"error":{"message":"M","type":"t","code":404}}"#, None, Some(404), Some("t")),
            (r#"{"object":"error","message":"M","type":"t","param":null,"code":404}"#, None, Some(404), Some("t")),
            (r#"{"code":"c","message":"M","request_id":"1"}"#, Some("c"), None, None),
            (r#"{"error":"M"}"#, None, None, None),
            (r#"{"detail":"M"}"#, None, None, None),
            ("M", None, None, None),
        ] {
            let report = ErrorReport::from_body(body.as_bytes());
            assert_eq!(report.code.as_deref(), code, "{body}");
            assert_eq!((report.status, report.kind.as_deref()), (status, kind), "{body}");
            assert_eq!(report.message, "m", "{body}");
        }
        assert_eq!(ErrorReport::from_body(b"{\"error\":null}"), ErrorReport::default());
        assert_eq!(ErrorReport::from_error(&serde_json::json!({"code": "a\nb"})).code.as_deref(), Some("ab"));
    }

    #[test]
    fn retry_after_reads_seconds_milliseconds_and_dates() {
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(read("retry-after", " 7 "), Some(Duration::from_secs(7)));
        assert_eq!(read("retry-after", "0.5"), Some(Duration::from_millis(500)));
        assert_eq!(read("retry-after-ms", "20"), Some(Duration::from_millis(20)));
        assert!(read("retry-after", "Fri, 31 Dec 2100 23:59:59 GMT") > Some(Duration::from_secs(1)));
        for nonsense in ["soon", "-1", "NaN", "1e300", "Fri, 31 Dec 1999 23:59:59 GMT"] {
            assert_eq!(read("retry-after", nonsense), None, "{nonsense}");
        }
    }
}
