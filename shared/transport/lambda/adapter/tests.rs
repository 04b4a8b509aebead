use std::task::Poll;

use futures_util::StreamExt as _;
use serde_json::json;
use tower::util::{BoxCloneSyncService, service_fn};

use super::*;

#[derive(Clone)]
struct TestService(BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>);

impl NamedService for TestService {
    const NAME: &'static str = "x.Y";
}

impl Service<Request<Body>> for TestService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = futures_util::future::BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request)
    }
}

async fn response_text<F>(respond: impl Fn() -> F + Clone + Send + Sync + 'static, time_left: Duration) -> String
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let service = TestService(BoxCloneSyncService::new(service_fn(move |_: Request<Body>| respond())));
    let event = json!({
        "rawPath": "/x.Y/Z",
        "headers": {"content-type": "application/grpc-web+proto"},
        "requestContext": {"http": {"method": "POST"}},
    });
    let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + time_left;
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap();
    let response = Adapter::new(service, &["Z"]).handle(event, deadline_ms).await;
    assert_eq!(response.status(), StatusCode::OK);
    let chunks: Vec<_> = response.into_body().map(Result::unwrap).collect().await;
    String::from_utf8_lossy(&chunks.concat()).into_owned()
}

fn body(
    frames: impl futures_util::Stream<Item = Result<Frame<Bytes>, Status>> + Send + 'static,
) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Body::new(StreamBody::new(frames))))
}

#[tokio::test]
async fn panic_ends_a_started_stream_with_internal() {
    let minute = Duration::from_mins(1);
    let immediate = response_text(|| async { panic!("secret detail") }, minute).await;
    assert!(immediate.contains("grpc-status: 13") && !immediate.contains("secret"), "{immediate}");
    let midway = || async {
        let mut polls = 0;
        body(stream::poll_fn(move |_| {
            polls += 1;
            if polls == 1 { Poll::Ready(Some(Ok(Frame::data("said".into())))) } else { panic!("secret detail") }
        }))
    };
    let midway = response_text(midway, minute).await;
    assert!(midway.starts_with("said") && midway.contains("grpc-status: 13"), "{midway}");
}

#[tokio::test]
async fn stream_errors_and_trailers_are_in_the_body() {
    let failing =
        || async { body(stream::iter([Ok(Frame::data("said".into())), Err(Status::unavailable("gone\r\nx: y"))])) };
    let failed = response_text(failing, Duration::from_mins(1)).await;
    // A tonic service ends a stream with trailers; a body that fails is a defect.
    assert!(failed.starts_with("said") && failed.contains("grpc-status: 13"), "{failed}");
    assert!(!failed.contains("\r\nx: y"), "a message cannot inject trailers");
    let trailers =
        || async { body(stream::iter([Ok(Frame::trailers(Status::ok("").metadata().clone().into_headers()))])) };
    assert!(response_text(trailers, Duration::from_mins(1)).await.starts_with('\u{fffd}'), "the frame of the trailers");
}

#[tokio::test(start_paused = true)]
async fn deadline_ends_a_pending_call_and_stream() {
    let never = response_text(std::future::pending, Duration::from_secs(3)).await;
    assert!(never.contains("grpc-status: 4"), "{never}");
    let stalled = || async { body(stream::pending()) };
    let stalled = response_text(stalled, Duration::from_secs(3)).await;
    assert!(stalled.contains("grpc-status: 4"), "{stalled}");
}

#[tokio::test]
async fn deadline_ends_a_stream_that_never_pauses() {
    let busy = || async {
        let began = std::time::Instant::now();
        let nothing = stream::repeat_with(|| Ok(Frame::data(Bytes::new())));
        body(nothing.take_while(move |_| std::future::ready(began.elapsed() < Duration::from_secs(20))))
    };
    let ended = response_text(busy, Duration::from_millis(100)).await;
    assert!(ended.contains("grpc-status: 4"), "{ended}");
}

#[test]
fn method_is_found_behind_any_prefix() {
    assert_eq!(method_of("/agent.v1.AgentService/StreamChat", "agent.v1.AgentService"), Some("StreamChat"));
    assert_eq!(method_of("/prod/agent.v1.AgentService/StreamChat", "agent.v1.AgentService"), Some("StreamChat"));
    for other in ["/", "", "/StreamChat", "/agent.v1.Other/StreamChat", "/agent.v1.AgentService/"] {
        assert!(!matches!(method_of(other, "agent.v1.AgentService"), Some("StreamChat")), "{other}");
    }
}

#[test]
fn time_left_reserves_a_margin() {
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    assert!(time_left(now + 60_000) <= Duration::from_secs(59));
    let short = time_left(now + 1_000);
    assert!(short <= Duration::from_millis(750) && short > Duration::from_millis(500), "{short:?}");
    assert_eq!(time_left(now - 5_000), Duration::ZERO);
    assert_eq!(time_left(600_000), Duration::from_secs(599), "the duration that cargo lambda watch sends");
}
