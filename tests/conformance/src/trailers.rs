//! Trailers of successful calls, for which tonic has no API.

use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use tonic::body::Body;

/// A response extension: additional trailers.
#[derive(Clone)]
pub struct Trailers(pub HeaderMap);

/// Adds the [`Trailers`] of a response to those that end its body.
pub fn append(mut response: Response<Body>) -> Response<Body> {
    let Some(Trailers(more)) = response.extensions_mut().remove() else { return response };
    response.map(|body| {
        Body::new(body.map_frame(move |mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                trailers.extend(more.clone());
            }
            frame
        }))
    })
}
