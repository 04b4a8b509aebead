//! An HTTP/1.1 server whose responses the test computes. Every crate with tests that need one includes this file.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

#[derive(Debug)]
pub struct HttpRequest {
    /// Method and path.
    pub target: String,
    head: String,
    pub body: Vec<u8>,
}

impl HttpRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

pub struct HttpDouble {
    pub url: String,
    accepting: JoinHandle<()>,
}

impl HttpDouble {
    /// `respond` returns a status and a body.
    pub async fn start<F>(respond: impl Fn(HttpRequest) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = (u16, String)> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let accepting = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let respond = respond.clone();
                tokio::spawn(async move {
                    let Some(request) = read_request(&mut socket).await else { return };
                    let (status, body) = respond(request).await;
                    // The time to live is for the token of an instance's metadata service.
                    let head = format!(
                        "HTTP/1.1 {status} Computed\r\nconnection: close\r\ncontent-length: {}\r\n\
                         x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n",
                        body.len()
                    );
                    // Some tests disconnect early.
                    let _sent = socket.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await;
                });
            }
        });
        Self { url, accepting }
    }
}

impl Drop for HttpDouble {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn read_request(socket: &mut TcpStream) -> Option<HttpRequest> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = socket.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&piece[..read]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let target = head.split(" HTTP/").next().unwrap_or_default().to_owned();
        let mut request = HttpRequest { target, head, body: Vec::new() };
        let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        if bytes.len() >= end + 4 + length {
            request.body = bytes.split_off(end + 4);
            return Some(request);
        }
    }
}
