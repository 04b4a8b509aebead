//! Parses HTTP events of a Function URL (payload format 2.0) and of a REST API (1.0).

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug)]
pub(super) struct HttpEvent {
    pub(super) method: Method,
    /// May begin with a stage or another prefix.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: EventBody,
}

/// Decoded only when a method reads it, after the caller is authenticated.
#[derive(Debug, Clone)]
pub(super) struct EventBody {
    text: String,
    is_base64: bool,
}

impl EventBody {
    pub(super) fn decode(self) -> Result<Vec<u8>, base64::DecodeError> {
        if self.is_base64 { STANDARD.decode(self.text) } else { Ok(self.text.into_bytes()) }
    }
}

/// The fields of both formats, which name the method and the path differently.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    request_context: Option<RequestContext>,
    raw_path: Option<String>,
    http_method: Option<String>,
    path: Option<String>,
    headers: Option<HashMap<String, Option<String>>>,
    /// `headers` has only the last value of each header.
    multi_value_headers: Option<HashMap<String, Vec<String>>>,
    body: Option<String>,
    #[serde(default)]
    is_base64_encoded: bool,
}

#[derive(Deserialize)]
struct RequestContext {
    http: Option<Http>,
}

#[derive(Deserialize)]
struct Http {
    method: String,
}

impl HttpEvent {
    pub(super) fn parse(event: Value) -> Option<Self> {
        let event: Event = serde_json::from_value(event).ok()?;
        // This order matters: `cargo lambda watch` sets `httpMethod` in format 2.0 as well, to a wrong method.
        let method = event.request_context.and_then(|context| Some(context.http?.method)).or(event.http_method)?;
        let mut headers = HeaderMap::new();
        // Invalid headers cannot come from HTTP and are ignored.
        let mut add = |name: &str, value: &str| {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.append(name, value);
            }
        };
        match event.multi_value_headers {
            Some(all) => all.iter().for_each(|(name, values)| values.iter().for_each(|value| add(name, value))),
            None => event.headers.iter().flatten().for_each(|(name, value)| add(name, value.as_deref().unwrap_or(""))),
        }
        Some(Self {
            method: method.parse().ok()?,
            path: event.raw_path.or(event.path)?,
            headers,
            body: EventBody { text: event.body.unwrap_or_default(), is_base64: event.is_base64_encoded },
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_of_function_url_and_rest_api_parse_alike() {
        let function_url = json!({
            "version": "2.0", "rawPath": "/x.Y/Z", "httpMethod": "GET", "headers": {"content-type": "a", "accept": "b,c"},
            "requestContext": {"http": {"method": "POST", "path": "/x.Y/Z"}}, "body": "aGk=", "isBase64Encoded": true
        });
        // A REST API sends null for absent values.
        let rest_api = json!({
            "httpMethod": "POST", "path": "/x.Y/Z", "resource": "/x.Y/{method}", "queryStringParameters": null,
            "headers": {"Content-Type": "a", "Accept": "c"}, "multiValueHeaders": {"Content-Type": ["a"], "Accept": ["b", "c"]},
            "requestContext": {"stage": "live", "httpMethod": "POST"}, "body": "hi", "isBase64Encoded": false
        });
        for event in [function_url, rest_api] {
            let request = HttpEvent::parse(event).unwrap();
            assert_eq!((request.method, request.path.as_str()), (Method::POST, "/x.Y/Z"));
            assert_eq!(request.headers["content-type"], "a");
            let accept: Vec<_> =
                request.headers.get_all("accept").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(accept.join(","), "b,c");
            assert_eq!(request.body.decode().unwrap(), b"hi");
        }
    }

    #[test]
    fn invalid_headers_are_ignored_and_other_events_are_none() {
        let event =
            json!({"httpMethod": "GET", "path": "/", "headers": {"a b": "c", "d": "e\nf", "g": null}, "body": null});
        let request = HttpEvent::parse(event).unwrap();
        assert_eq!(request.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["g"]);
        assert!(request.body.decode().unwrap().is_empty());
        let not_base64 = json!({"httpMethod": "GET", "path": "/", "body": "!", "isBase64Encoded": true});
        assert!(HttpEvent::parse(not_base64).unwrap().body.decode().is_err());
        for other in [
            json!(null),
            json!({}),
            json!("text"),
            json!({"Records": []}),
            json!({"httpMethod": "GET"}),
            json!({"httpMethod": "", "path": "/"}),
            json!({"httpMethod": "POST", "path": "/", "headers": "x"}),
            json!({"rawPath": "/", "requestContext": {"http": null}}),
        ] {
            assert!(HttpEvent::parse(other.clone()).is_none(), "{other}");
        }
    }
}
