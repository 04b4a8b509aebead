//! A simulated user: a WebSocket, a session, and the measurements of its turns.

use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

use crate::{Failures, Outcome, paced_provider::lateness};

/// On top of the paced length of the answer.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Shared by all users.
pub struct Client {
    /// Of the bridge.
    pub url: String,
    /// Expected deltas per answer; `None` = unknown.
    pub deltas: Option<usize>,
    /// The minimum duration of an answer.
    pub answer_duration: Duration,
}

/// Times are in milliseconds.
#[derive(Default)]
pub struct LoadReport {
    /// Turns with a correct answer.
    pub turns: usize,
    pub frames: usize,
    pub first_frames: Vec<f64>,
    pub first_deltas: Vec<f64>,
    pub lateness: Vec<f64>,
    pub failures: Failures,
}

impl LoadReport {
    pub fn add(&mut self, mut other: Self) {
        self.turns += other.turns;
        self.frames += other.frames;
        self.first_frames.append(&mut other.first_frames);
        self.first_deltas.append(&mut other.first_deltas);
        self.lateness.append(&mut other.lateness);
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
    }
}

impl Client {
    /// After a failed turn, reconnects and continues the same session.
    pub async fn converse(&self, number: usize, turns: usize) -> LoadReport {
        let mut user =
            User { client: self, number, socket: None, session: String::new(), report: LoadReport::default() };
        for turn in 1..=turns {
            let turn_timeout = self.answer_duration + TURN_TIMEOUT;
            let failure = match timeout(turn_timeout, user.run_turn(turn)).await {
                Ok(Ok(())) => {
                    user.report.turns += 1;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no final frame within {turn_timeout:?}"),
            };
            *user.report.failures.entry(failure).or_default() += 1;
            user.socket = None;
        }
        if let Some(mut socket) = user.socket {
            // A failed closing handshake does not matter.
            let _ = socket.close(None).await;
        }
        user.report
    }
}

struct User<'c> {
    client: &'c Client,
    number: usize,
    socket: Option<Socket>,
    session: String,
    report: LoadReport,
}

impl User<'_> {
    async fn run_turn(&mut self, turn: usize) -> Outcome<()> {
        let trace_id = format!("{:032x}", self.number + 1);
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => self.connect(&trace_id).await?,
        };
        let sent_at = Instant::now();
        let question = json!({
            "message": format!("Question {turn} of user {}", self.number),
            "session_id": self.session,
            "request_id": format!("{}-{turn}-{}", self.number, fastrand::u64(..)),
        });
        socket.send(Message::text(question.to_string())).await?;
        let (mut frames, mut deltas, mut answer) = (0, 0, String::new());
        let last = loop {
            let frame = next_frame(&mut socket).await?;
            let elapsed = sent_at.elapsed().as_secs_f64() * 1e3;
            frames += 1;
            if frames == 1 {
                self.report.first_frames.push(elapsed);
                text(&frame, "session_id").clone_into(&mut self.session);
            }
            if let Some(delta) = frame["delta"].as_str() {
                deltas += 1;
                if deltas == 1 {
                    self.report.first_deltas.push(elapsed);
                }
                self.report.lateness.extend(lateness(delta));
                answer.push_str(delta);
            }
            if !frame["finish_reason"].is_null() {
                break frame;
            }
        };
        self.socket = Some(socket);
        self.report.frames += frames;
        self.check_answer(&last, &answer, deltas, &trace_id)
    }

    fn check_answer(&self, last: &Value, answer: &str, deltas: usize, trace_id: &str) -> Outcome<()> {
        let error = &last["error"];
        if error.is_object() {
            return Err(format!("{}: {}", text(error, "code"), text(error, "message")).into());
        }
        if text(last, "full_text") != answer {
            return Err("full_text differs from the deltas".into());
        }
        match self.client.deltas {
            Some(expected) if expected != deltas => Err(format!("{deltas} deltas instead of {expected}").into()),
            Some(_) if text(last, "trace_id") != trace_id => Err("the trace id was not propagated".into()),
            _ => Ok(()),
        }
    }

    async fn connect(&self, trace_id: &str) -> Outcome<Socket> {
        let mut request = format!("{}?user=user-{}", self.client.url, self.number).into_client_request()?;
        request.headers_mut().insert("traceparent", format!("00-{trace_id}-{:016x}-01", self.number + 1).parse()?);
        Ok(connect_async(request).await?.0)
    }
}

/// Skips control messages.
async fn next_frame(socket: &mut Socket) -> Outcome<Value> {
    loop {
        match socket.next().await.ok_or("the socket was closed during an answer")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(_) => return Err("the socket was closed during an answer".into()),
            _ => {}
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}
