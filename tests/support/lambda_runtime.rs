//! An emulator of Lambda's Runtime API that runs the real program: it delivers events and reads responses as they are streamed.
//! <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>

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

/// Ends a test that hangs. No assertion depends on its length.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub enum FunctionOutput {
    /// The headers of the call to the Runtime API.
    Head(HashMap<String, String>),
    Chunk(Vec<u8>),
    End,
    Error(String),
}

pub struct LambdaFunction {
    program: Child,
    events: mpsc::UnboundedSender<(Value, Duration)>,
    pub output: mpsc::UnboundedReceiver<FunctionOutput>,
    serving: JoinHandle<()>,
}

impl LambdaFunction {
    pub async fn start(program: &str, variables: &[(&str, &str)]) -> Self {
        Self::run(command(program, variables)).await
    }

    /// Like [`LambdaFunction::start`], with the log in a file.
    pub async fn start_with_log(program: &str, variables: &[(&str, &str)], log: std::fs::File) -> Self {
        let mut command = command(program, variables);
        command.stderr(log);
        Self::run(command).await
    }

    async fn run(mut command: Command) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (events, queue) = mpsc::unbounded_channel();
        let (output_sender, output) = mpsc::unbounded_channel();
        let serving = tokio::spawn(serve(listener, queue, output_sender));
        let program = command.env("AWS_LAMBDA_RUNTIME_API", address).spawn().unwrap();
        Self { program, events, output, serving }
    }

    pub fn invoke(&self, event: Value, time: Duration) {
        self.events.send((event, time)).unwrap();
    }

    pub async fn next(&mut self) -> FunctionOutput {
        tokio::time::timeout(TEST_TIMEOUT, self.output.recv()).await.expect("the function sends no output").unwrap()
    }

    /// Sends SIGTERM, as Lambda does before it ends an execution environment.
    pub async fn terminate(&self) {
        let id = self.program.id().expect("the function has ended").to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    }

    pub async fn wait(&mut self) -> Option<i32> {
        let status = tokio::time::timeout(TEST_TIMEOUT, self.program.wait()).await;
        status.expect("the function does not end").unwrap().code()
    }

    pub async fn answer(&mut self, event: Value) -> FunctionResponse {
        self.invoke(event, Duration::from_secs(30));
        self.rest(Vec::new()).await
    }

    /// The complete response, of which `bytes` were read already.
    pub async fn rest(&mut self, mut bytes: Vec<u8>) -> FunctionResponse {
        bytes.extend(self.chunks().await.concat());
        FunctionResponse::of(&bytes)
    }

    pub async fn chunks(&mut self) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        loop {
            match self.next().await {
                FunctionOutput::Head(_) => {}
                FunctionOutput::Chunk(chunk) => chunks.push(chunk),
                FunctionOutput::End => return chunks,
                FunctionOutput::Error(error) => panic!("the function reported an error: {error}"),
            }
        }
    }
}

impl Drop for LambdaFunction {
    fn drop(&mut self) {
        self.serving.abort();
        let _ = self.program.start_kill();
    }
}

pub async fn run_to_failure(program: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = command(program, variables);
    command.stderr(Stdio::piped());
    let output = tokio::time::timeout(TEST_TIMEOUT, command.output()).await.expect("the program does not end").unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// `FUNCTION_PROGRAMS_DIR` replaces the program by the deployed build of the same name.
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
    output: mpsc::UnboundedSender<FunctionOutput>,
) {
    let mut number = 0;
    // The runtime may reuse a connection or open one per call. A response may overlap with the poll for the next event.
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
            let output = output.clone();
            open.spawn(async move {
                let end = read_body(&mut socket, &headers, is_error, &output).await;
                let _ = output.send(end);
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

/// Reads a response, with content length or chunked.
async fn read_body(
    socket: &mut BufReader<TcpStream>,
    headers: &HashMap<String, String>,
    is_error: bool,
    output: &mpsc::UnboundedSender<FunctionOutput>,
) -> FunctionOutput {
    let mut body = Vec::new();
    if let Some(length) = headers.get("content-length") {
        body.resize(length.parse().unwrap(), 0);
        socket.read_exact(&mut body).await.unwrap();
    }
    if is_error {
        return FunctionOutput::Error(String::from_utf8_lossy(&body).into_owned());
    }
    let _ = output.send(FunctionOutput::Head(headers.clone()));
    if !body.is_empty() {
        let _ = output.send(FunctionOutput::Chunk(body));
        return FunctionOutput::End;
    }
    loop {
        let mut size = String::new();
        socket.read_line(&mut size).await.unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        if size == 0 {
            // An error within a streamed response is reported in trailers.
            let mut trailers = String::new();
            loop {
                let mut line = String::new();
                socket.read_line(&mut line).await.unwrap();
                if line.trim().is_empty() {
                    break;
                }
                trailers.push_str(&line);
            }
            return if trailers.is_empty() { FunctionOutput::End } else { FunctionOutput::Error(trailers) };
        }
        socket.read_exact(&mut chunk).await.unwrap();
        chunk.truncate(size);
        let _ = output.send(FunctionOutput::Chunk(chunk));
    }
}

#[derive(Debug)]
pub struct FunctionResponse {
    pub status: u64,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl FunctionResponse {
    fn of(bytes: &[u8]) -> Self {
        // The prelude in JSON, eight NUL bytes, the body.
        let end = bytes.windows(8).position(|window| window == [0; 8]).expect("no prelude");
        let prelude: Value = serde_json::from_slice(&bytes[..end]).unwrap();
        let headers = prelude["headers"].as_object().cloned().unwrap_or_default();
        Self {
            status: prelude["statusCode"].as_u64().unwrap(),
            headers: headers.into_iter().map(|(name, value)| (name, value.as_str().unwrap().to_owned())).collect(),
            body: bytes[end + 8..].to_vec(),
        }
    }

    pub fn frames(&self) -> (Vec<Vec<u8>>, HashMap<String, String>) {
        frames(&self.body)
    }

    /// The messages and trailers in text mode, where each part is base64-encoded by itself.
    pub fn text_frames(&self) -> (Vec<Vec<u8>>, HashMap<String, String>) {
        let text = std::str::from_utf8(&self.body).expect("the response is not UTF-8");
        let mut bytes = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            // A part ends with its padding, or with the text.
            let end =
                rest.find('=').map_or(rest.len(), |at| at + rest[at..].bytes().take_while(|b| *b == b'=').count());
            bytes.extend(STANDARD.decode(&rest[..end]).expect("a part is not base64"));
            rest = &rest[end..];
        }
        frames(&bytes)
    }
}

fn frames(mut rest: &[u8]) -> (Vec<Vec<u8>>, HashMap<String, String>) {
    let mut messages = Vec::new();
    loop {
        let (head, body) = rest.split_at_checked(5).expect("the response ends without trailers");
        let length = usize::try_from(u32::from_be_bytes(head[1..].try_into().unwrap())).unwrap();
        let (frame, after) = body.split_at_checked(length).expect("the response ends within a frame");
        if head[0] & 0x80 == 0 {
            messages.push(frame.to_vec());
            rest = after;
            continue;
        }
        assert!(after.is_empty(), "data follows the trailers");
        let lines = std::str::from_utf8(frame).unwrap().lines();
        let trailers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        return (messages, trailers.collect());
    }
}

/// A length-prefixed message.
pub fn grpc_frame(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// An event of a REST API; the body is text, or base64 for binary media types.
pub fn rest_api_event(path: &str, content_type: &str, body: &str, is_base64: bool) -> Value {
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

pub fn function_url_event(path: &str, content_type: &str, body: &[u8]) -> Value {
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
