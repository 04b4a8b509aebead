//! A double of Lambda's Runtime API, by which the real program is given events and from which its answers are read as they
//! come: <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>.

use std::{collections::HashMap, path::PathBuf, process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::mpsc,
    task::JoinHandle,
};

/// Ends a test that would hang. No assertion depends on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a function says to one event.
#[derive(Debug)]
pub enum Said {
    /// The head of its answer: headers of the call to the Runtime API.
    Head(HashMap<String, String>),
    /// A piece of the answer, as it came.
    Chunk(Vec<u8>),
    /// The answer is complete.
    End,
    /// It told an error instead.
    Error(String),
}

/// A running function.
pub struct Function {
    program: Child,
    events: mpsc::UnboundedSender<(Value, Duration)>,
    pub said: mpsc::UnboundedReceiver<Said>,
    serving: JoinHandle<()>,
}

impl Function {
    /// Starts a program with these variables and no others.
    pub async fn start(program: &str, variables: &[(&str, &str)]) -> Self {
        Self::run(command(program, variables)).await
    }

    /// The same, with its log in a file.
    pub async fn start_with_log(program: &str, variables: &[(&str, &str)], log: std::fs::File) -> Self {
        let mut command = command(program, variables);
        command.stderr(log);
        Self::run(command).await
    }

    async fn run(mut command: Command) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (events, queue) = mpsc::unbounded_channel();
        let (tell, said) = mpsc::unbounded_channel();
        let serving = tokio::spawn(serve(listener, queue, tell));
        let program = command.env("AWS_LAMBDA_RUNTIME_API", address).spawn().unwrap();
        Self { program, events, said, serving }
    }

    /// Gives the function an event, and so much time for it.
    pub fn invoke(&self, event: Value, time: Duration) {
        self.events.send((event, time)).unwrap();
    }

    pub async fn next(&mut self) -> Said {
        tokio::time::timeout(PATIENCE, self.said.recv()).await.expect("the function says nothing").unwrap()
    }

    /// Tells the function to end, as Lambda does.
    pub async fn terminate(&self) {
        let id = self.program.id().expect("it has ended").to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    }

    /// The exit code, once it has ended.
    pub async fn ended(&mut self) -> Option<i32> {
        let ended = tokio::time::timeout(PATIENCE, self.program.wait()).await;
        ended.expect("it does not end").unwrap().code()
    }

    /// The whole answer to an event.
    pub async fn answer(&mut self, event: Value) -> Answer {
        self.invoke(event, Duration::from_secs(30));
        self.rest(Vec::new()).await
    }

    /// What follows the beginning of an answer.
    pub async fn rest(&mut self, mut bytes: Vec<u8>) -> Answer {
        bytes.extend(self.chunks().await.concat());
        Answer::of(&bytes)
    }

    /// The pieces in which the rest of an answer arrives.
    pub async fn chunks(&mut self) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        loop {
            match self.next().await {
                Said::Head(_) => {}
                Said::Chunk(chunk) => chunks.push(chunk),
                Said::End => return chunks,
                Said::Error(error) => panic!("the function told an error: {error}"),
            }
        }
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.serving.abort();
        let _ = self.program.start_kill();
    }
}

/// How a program ends that does not begin to serve.
pub async fn refused(program: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = command(program, variables);
    command.stderr(Stdio::piped());
    let ended = tokio::time::timeout(PATIENCE, command.output()).await.expect("it does not end").unwrap();
    (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

/// A program, or the one of its name in `FUNCTION_PROGRAMS_DIR`, so that those which are deployed can be tested.
fn command(program: &str, variables: &[(&str, &str)]) -> Command {
    let mut program = PathBuf::from(program);
    if let Some(directory) = std::env::var_os("FUNCTION_PROGRAMS_DIR") {
        program = PathBuf::from(directory).join(program.file_name().unwrap());
    }
    let mut command = Command::new(program);
    command
        .env_clear()
        .kill_on_drop(true)
        .env("AWS_LAMBDA_FUNCTION_NAME", "function")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
        .env("AWS_LAMBDA_LOG_STREAM_NAME", "stream")
        .env("AWS_LAMBDA_LOG_GROUP_NAME", "group")
        .env("RUST_LOG", "warn")
        .envs(variables.iter().copied());
    command
}

async fn serve(
    listener: TcpListener,
    mut queue: mpsc::UnboundedReceiver<(Value, Duration)>,
    tell: mpsc::UnboundedSender<Said>,
) {
    let mut number = 0;
    // The runtime keeps one connection or opens one a call; either way one call is under way at a time, but for the next.
    let (calls, mut incoming) = mpsc::unbounded_channel();
    let accepting = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = calls.send(BufReader::new(socket));
        }
    });
    let mut open = tokio::task::JoinSet::new();
    loop {
        let mut socket = tokio::select! {
            Some(socket) = incoming.recv() => socket,
            Some(socket) = open.join_next() => match socket.unwrap() { Some(socket) => socket, None => continue },
            else => break,
        };
        let Some((path, headers)) = read_head(&mut socket).await else { continue };
        if path.ends_with("/invocation/next") {
            let Some((event, time)) = queue.recv().await else { break };
            number += 1;
            let deadline = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap() + time;
            let body = event.to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nlambda-runtime-aws-request-id: event-{number}\r\nlambda-runtime-deadline-ms: {}\r\n\
                 lambda-runtime-invoked-function-arn: arn:aws:lambda:x\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n",
                deadline.as_millis(),
                body.len()
            );
            socket.get_mut().write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            open.spawn(async move { Some(socket) });
        } else {
            let is_error = path.ends_with("/error");
            let tell = tell.clone();
            open.spawn(async move {
                let told = read_body(&mut socket, &headers, is_error, &tell).await;
                let _ = tell.send(told);
                let accepted = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n";
                socket.get_mut().write_all(accepted).await.ok().map(|()| socket)
            });
        }
    }
    accepting.abort();
}

async fn read_head(socket: &mut BufReader<TcpStream>) -> Option<(String, HashMap<String, String>)> {
    let mut line = String::new();
    if socket.read_line(&mut line).await.ok()? == 0 {
        return None;
    }
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        socket.read_line(&mut line).await.ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => return Some((path, headers)),
        };
    }
}

/// Reads what a function says, chunk by chunk where it comes so.
async fn read_body(
    socket: &mut BufReader<TcpStream>,
    headers: &HashMap<String, String>,
    is_error: bool,
    tell: &mpsc::UnboundedSender<Said>,
) -> Said {
    let mut whole = Vec::new();
    if let Some(length) = headers.get("content-length") {
        whole.resize(length.parse().unwrap(), 0);
        socket.read_exact(&mut whole).await.unwrap();
    }
    if is_error {
        return Said::Error(String::from_utf8_lossy(&whole).into_owned());
    }
    let _ = tell.send(Said::Head(headers.clone()));
    if !whole.is_empty() {
        let _ = tell.send(Said::Chunk(whole));
        return Said::End;
    }
    loop {
        let mut size = String::new();
        socket.read_line(&mut size).await.unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        if size == 0 {
            // Trailers, of which an error in the middle would be told by some, and the last line.
            let mut trailers = String::new();
            loop {
                let mut line = String::new();
                socket.read_line(&mut line).await.unwrap();
                if line.trim().is_empty() {
                    break;
                }
                trailers.push_str(&line);
            }
            return if trailers.is_empty() { Said::End } else { Said::Error(trailers) };
        }
        socket.read_exact(&mut chunk).await.unwrap();
        chunk.truncate(size);
        let _ = tell.send(Said::Chunk(chunk));
    }
}

/// What a function answered, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: u64,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    fn of(bytes: &[u8]) -> Self {
        // A prelude in JSON, eight NUL bytes, the body.
        let end = bytes.windows(8).position(|window| window == [0; 8]).expect("no prelude");
        let prelude: Value = serde_json::from_slice(&bytes[..end]).unwrap();
        let headers = prelude["headers"].as_object().cloned().unwrap_or_default();
        Self {
            status: prelude["statusCode"].as_u64().unwrap(),
            headers: headers.into_iter().map(|(name, value)| (name, value.as_str().unwrap().to_owned())).collect(),
            body: bytes[end + 8..].to_vec(),
        }
    }

    /// The messages of a binary answer, and its trailers. Nothing else may be in it.
    pub fn frames(&self) -> (Vec<Vec<u8>>, HashMap<String, String>) {
        frames(&self.body)
    }

    /// The same of an answer in text mode, whose pieces are encoded one by one.
    pub fn text_frames(&self) -> (Vec<Vec<u8>>, HashMap<String, String>) {
        let text = std::str::from_utf8(&self.body).expect("the answer is no text");
        let mut bytes = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            // A piece ends with its padding, or at a length that is a multiple of four.
            let end =
                rest.find('=').map_or(rest.len(), |at| at + rest[at..].bytes().take_while(|b| *b == b'=').count());
            bytes.extend(STANDARD.decode(&rest[..end]).expect("a piece is not base64"));
            rest = &rest[end..];
        }
        frames(&bytes)
    }
}

fn frames(mut rest: &[u8]) -> (Vec<Vec<u8>>, HashMap<String, String>) {
    let mut messages = Vec::new();
    loop {
        let (head, body) = rest.split_at_checked(5).expect("the answer ends without trailers");
        let length = usize::try_from(u32::from_be_bytes(head[1..].try_into().unwrap())).unwrap();
        let (frame, after) = body.split_at_checked(length).expect("the answer ends within a frame");
        if head[0] & 0x80 == 0 {
            messages.push(frame.to_vec());
            rest = after;
            continue;
        }
        assert!(after.is_empty(), "something follows the trailers");
        let lines = std::str::from_utf8(frame).unwrap().lines();
        let trailers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        return (messages, trailers.collect());
    }
}

/// A message as it travels.
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// An event of a REST API, with the body as it is told: as text, or in base64 where its type is one of the binary ones.
pub fn rest_event(path: &str, content_type: &str, body: &str, is_base64: bool) -> Value {
    json!({
        "resource": "/agent.v1.AgentService/StreamChat",
        "path": path,
        "httpMethod": "POST",
        "headers": {"Content-Type": content_type, "X-Grpc-Web": "1"},
        "multiValueHeaders": {"Content-Type": [content_type], "X-Grpc-Web": ["1"]},
        "queryStringParameters": null,
        "multiValueQueryStringParameters": null,
        "pathParameters": null,
        "stageVariables": null,
        "requestContext": {
            "accountId": "123456789012", "apiId": "id", "httpMethod": "POST", "path": format!("/live{path}"), "stage": "live",
            "protocol": "HTTP/1.1", "requestId": "r", "identity": {"sourceIp": "127.0.0.1"}
        },
        "body": body,
        "isBase64Encoded": is_base64
    })
}

/// An event of a Function URL: a call of a method.
pub fn event(path: &str, content_type: &str, body: &[u8]) -> Value {
    json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": content_type, "x-grpc-web": "1"},
        "requestContext": {
            "accountId": "anonymous", "apiId": "id", "domainName": "id.lambda-url.on.aws", "domainPrefix": "id",
            "http": {"method": "POST", "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": "test"},
            "requestId": "r", "routeKey": "$default", "stage": "$default", "time": "", "timeEpoch": 0
        },
        "body": STANDARD.encode(body),
        "isBase64Encoded": true
    })
}
