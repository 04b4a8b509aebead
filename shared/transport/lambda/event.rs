//! Events that stand for an HTTP request: of a Function URL (payload format 2.0) and of a REST API (1.0).

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::Value;

/// The request that an event stands for.
#[derive(Debug)]
pub(super) struct HttpEvent {
    pub(super) method: Method,
    /// It may begin with a stage, or whatever else the service stands behind.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Result<Vec<u8>, base64::DecodeError>,
}

/// What is read of either format; each has names of its own for the method and the path.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    request_context: Option<RequestContext>,
    raw_path: Option<String>,
    http_method: Option<String>,
    path: Option<String>,
    headers: Option<HashMap<String, Option<String>>>,
    /// All values of each header, where `headers` has only the last.
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
    /// Reads an event; `None` if it stands for no HTTP request.
    pub(super) fn read(event: Value) -> Option<Self> {
        let event: Event = serde_json::from_value(event).ok()?;
        // `cargo lambda watch` has a name of the other format in its events as well, with a method of no meaning.
        let method = event.request_context.and_then(|context| Some(context.http?.method)).or(event.http_method)?;
        let mut headers = HeaderMap::new();
        // What is no header of HTTP can not have come as one.
        let mut add = |name: &str, value: &str| {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.append(name, value);
            }
        };
        match event.multi_value_headers {
            Some(all) => all.iter().for_each(|(name, values)| values.iter().for_each(|value| add(name, value))),
            None => event.headers.iter().flatten().for_each(|(name, value)| add(name, value.as_deref().unwrap_or(""))),
        }
        let body = event.body.unwrap_or_default();
        Some(Self {
            method: method.parse().ok()?,
            path: event.raw_path.or(event.path)?,
            headers,
            body: if event.is_base64_encoded { STANDARD.decode(body) } else { Ok(body.into_bytes()) },
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_of_a_function_url_and_one_of_a_rest_api_are_read_alike() {
        let of_url = json!({
            "version": "2.0", "rawPath": "/x.Y/Z", "httpMethod": "GET", "headers": {"content-type": "a", "accept": "b,c"},
            "requestContext": {"http": {"method": "POST", "path": "/x.Y/Z"}}, "body": "aGk=", "isBase64Encoded": true
        });
        // A REST API says of what is not there that it is null.
        let of_rest = json!({
            "httpMethod": "POST", "path": "/x.Y/Z", "resource": "/x.Y/{method}", "queryStringParameters": null,
            "headers": {"Content-Type": "a", "Accept": "c"}, "multiValueHeaders": {"Content-Type": ["a"], "Accept": ["b", "c"]},
            "requestContext": {"stage": "live", "httpMethod": "POST"}, "body": "hi", "isBase64Encoded": false
        });
        for event in [of_url, of_rest] {
            let request = HttpEvent::read(event).unwrap();
            assert_eq!((request.method, request.path.as_str()), (Method::POST, "/x.Y/Z"));
            assert_eq!(request.headers["content-type"], "a");
            let accept: Vec<_> =
                request.headers.get_all("accept").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(accept.join(","), "b,c");
            assert_eq!(request.body.unwrap(), b"hi");
        }
    }

    #[test]
    fn what_is_no_header_is_left_out_and_what_is_no_request_is_none() {
        let event =
            json!({"httpMethod": "GET", "path": "/", "headers": {"a b": "c", "d": "e\nf", "g": null}, "body": null});
        let request = HttpEvent::read(event).unwrap();
        assert_eq!(request.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["g"]);
        assert!(request.body.unwrap().is_empty());
        let not_base64 = json!({"httpMethod": "GET", "path": "/", "body": "!", "isBase64Encoded": true});
        assert!(HttpEvent::read(not_base64).unwrap().body.is_err());
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
            assert!(HttpEvent::read(other.clone()).is_none(), "{other}");
        }
    }
}
