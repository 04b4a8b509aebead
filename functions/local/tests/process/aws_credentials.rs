//! Conversations in DynamoDB: where region and credentials of the requests come from.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use agent_service::proto::agent_v1::{
    ListSessionsRequest, conversation_service_client::ConversationServiceClient as ConversationClient,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    http_double::{HttpDouble, HttpRequest},
    process::{Process, ProcessOutput, Sandbox, Signal, within_timeout},
    server::{Server, USER},
};

/// No test needs the memory.
const NO_DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
const CONVERSATIONS: (&str, &str) = ("CONVERSATIONS", "dynamodb://conversations");
/// No test asks the metadata service of the machine on which it runs.
const NO_INSTANCE: (&str, &str) = ("AWS_EC2_METADATA_DISABLED", "true");

/// DynamoDB without items, and the services that give credentials.
struct Aws {
    endpoint: HttpDouble,
    signatures: Arc<Mutex<Vec<Signature>>>,
    issued: Arc<Mutex<u32>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature {
    key: String,
    region: String,
    token: Option<String>,
}

impl Aws {
    async fn start() -> Self {
        let (signatures, issued) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<u32>>::default());
        let (seen, counter) = (signatures.clone(), issued.clone());
        let endpoint = HttpDouble::start(move |request| {
            let answer = respond(&request, &seen, &counter);
            async move { answer }
        })
        .await;
        Self { endpoint, signatures, issued }
    }

    /// Of the requests to DynamoDB since the last call.
    fn take_signatures(&self) -> Vec<Signature> {
        std::mem::take(&mut self.signatures.lock().unwrap())
    }

    fn issued(&self) -> u32 {
        *self.issued.lock().unwrap()
    }
}

fn respond(request: &HttpRequest, signatures: &Mutex<Vec<Signature>>, issued: &Mutex<u32>) -> (u16, String) {
    // Expires so soon that it is refreshed for each request.
    let expiration = Timestamp::now().checked_add(SignedDuration::from_secs(5)).unwrap();
    let issue = || {
        let mut issued = issued.lock().unwrap();
        *issued += 1;
        (format!("KEY{issued}"), format!("token{issued}"))
    };
    match request.target.split('?').next().unwrap() {
        "POST /" => {
            signatures.lock().unwrap().push(signature(request));
            (200, "{}".to_owned())
        }
        "GET /container" | "GET /latest/meta-data/iam/security-credentials/role" => {
            let (key, token) = issue();
            let credentials = json!({
                "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": Timestamp::now().to_string(),
                "AccessKeyId": key, "SecretAccessKey": "secret", "Token": token, "Expiration": expiration.to_string(),
            });
            (200, credentials.to_string())
        }
        "PUT /latest/api/token" => (200, "metadata-token".to_owned()),
        "GET /latest/meta-data/placement/region" => (200, "eu-north-1".to_owned()),
        "GET /latest/meta-data/iam/security-credentials/" => (200, "role".to_owned()),
        _ => (404, String::new()),
    }
}

/// `authorization: AWS4-HMAC-SHA256 Credential=KEY/DATE/REGION/dynamodb/aws4_request, …`
fn signature(request: &HttpRequest) -> Signature {
    let scope = request.header("authorization").unwrap().split("Credential=").nth(1).unwrap();
    let scope: Vec<_> = scope.split(',').next().unwrap().split('/').collect();
    assert_eq!(scope[3], "dynamodb");
    Signature {
        key: scope[0].to_owned(),
        region: scope[2].to_owned(),
        token: request.header("x-amz-security-token").map(str::to_owned),
    }
}

/// A server on `aws` with these variables.
async fn start(sandbox: &Sandbox, aws: &Aws, variables: &[(&str, &str)]) -> Server {
    let mut all = HashMap::from([NO_DATABASE, CONVERSATIONS, NO_INSTANCE]);
    all.insert("AWS_ENDPOINT_URL_DYNAMODB", aws.endpoint.url.as_str());
    all.extend(variables.iter().copied());
    sandbox.start_listening(&all.into_iter().collect::<Vec<_>>()).await
}

async fn list_sessions(server: &Server) {
    let mut client = ConversationClient::new(server.channel().await);
    let request = ListSessionsRequest { user_id: USER.to_owned(), ..Default::default() };
    assert_eq!(client.list_sessions(request).await.unwrap().into_inner().sessions, []);
}

async fn fail_to_start(variables: &[(&str, &str)]) -> ProcessOutput {
    let all: Vec<_> = [NO_DATABASE, CONVERSATIONS, NO_INSTANCE].into_iter().chain(variables.iter().copied()).collect();
    let output = Sandbox::new().run(&[], &all).await;
    assert_eq!(output.code, Some(2), "{output:?}");
    output
}

#[tokio::test]
async fn aws_credentials_of_the_environment_come_first() {
    let (sandbox, aws) = (Sandbox::new(), Aws::start().await);
    write_profiles(&sandbox);
    let variables = [
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", "ENVIRONMENT"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_SESSION_TOKEN", "session"),
    ];
    let server = start(&sandbox, &aws, &variables).await;
    list_sessions(&server).await;
    let expected = Signature {
        key: "ENVIRONMENT".to_owned(),
        region: "eu-central-1".to_owned(),
        token: Some("session".to_owned()),
    };
    let signatures = aws.take_signatures();
    assert!(!signatures.is_empty() && signatures.iter().all(|signature| *signature == expected), "{signatures:?}");
}

fn write_profiles(sandbox: &Sandbox) {
    let directory = sandbox.path().join(".aws");
    std::fs::create_dir(&directory).unwrap();
    let config = "[default]\nregion = us-west-2\n[profile work]\nregion = eu-west-3\n\
                  [profile command]\nregion = eu-west-3\ncredential_process = cat command.json\n";
    std::fs::write(directory.join("config"), config).unwrap();
    let credentials = "[default]\naws_access_key_id = DEFAULT\naws_secret_access_key = secret\n\
                       [work]\naws_access_key_id = WORK\naws_secret_access_key = secret\n";
    std::fs::write(directory.join("credentials"), credentials).unwrap();
    let command = json!({"Version": 1, "AccessKeyId": "COMMAND", "SecretAccessKey": "secret"});
    std::fs::write(sandbox.work().join("command.json"), command.to_string()).unwrap();
}

#[tokio::test]
async fn aws_profile_has_region_and_credentials() {
    let (sandbox, aws) = (Sandbox::new(), Aws::start().await);
    write_profiles(&sandbox);
    for (profile, key, region) in
        [("", "DEFAULT", "us-west-2"), ("work", "WORK", "eu-west-3"), ("command", "COMMAND", "eu-west-3")]
    {
        let named: &[_] = if profile.is_empty() { &[] } else { &[("AWS_PROFILE", profile)] };
        let server = start(&sandbox, &aws, named).await;
        list_sessions(&server).await;
        let expected = Signature { key: key.to_owned(), region: region.to_owned(), token: None };
        let signatures = aws.take_signatures();
        assert!(!signatures.is_empty() && signatures.iter().all(|signature| *signature == expected), "{signatures:?}");
        server.process.stop().await;
    }
}

/// The last credentials that were issued sign the requests of each call.
async fn assert_refreshed(server: &Server, aws: &Aws, region: &str) {
    for _ in 0..2 {
        let before = aws.issued();
        list_sessions(server).await;
        assert!(aws.issued() > before, "not refreshed");
        let signatures = aws.take_signatures();
        assert!(!signatures.is_empty());
        for Signature { key, region: signed_region, token } in signatures {
            let number: u32 = key.strip_prefix("KEY").unwrap().parse().unwrap();
            assert!(number > before, "{key} is older than the call");
            assert_eq!((signed_region.as_str(), token), (region, Some(format!("token{number}"))));
        }
    }
}

#[tokio::test]
async fn aws_credentials_of_a_container_are_refreshed() {
    let (sandbox, aws) = (Sandbox::new(), Aws::start().await);
    let container = format!("{}/container", aws.endpoint.url);
    let variables = [("AWS_REGION", "ap-southeast-1"), ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.as_str())];
    let server = start(&sandbox, &aws, &variables).await;
    assert_refreshed(&server, &aws, "ap-southeast-1").await;
}

#[tokio::test]
async fn aws_instance_has_region_and_credentials() {
    let (sandbox, aws) = (Sandbox::new(), Aws::start().await);
    let variables =
        [("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", aws.endpoint.url.as_str())];
    let server = start(&sandbox, &aws, &variables).await;
    list_sessions(&server).await;
    let signatures = aws.take_signatures();
    assert!(!signatures.is_empty());
    for Signature { key, region, token } in signatures {
        assert!(key.starts_with("KEY") && token.is_some(), "{key}");
        assert_eq!(region, "eu-north-1");
    }
}

#[tokio::test]
async fn missing_aws_region_or_credentials_are_reported_at_start() {
    let output = fail_to_start(&[]).await;
    assert!(output.stderr.contains("set AWS_REGION"), "{}", output.stderr);
    let output = fail_to_start(&[("AWS_REGION", "eu-central-1")]).await;
    assert!(output.stderr.contains("AWS_ACCESS_KEY_ID"), "{}", output.stderr);
    let output = fail_to_start(&[("AWS_REGION", "eu-central-1"), ("AWS_PROFILE", "absent")]).await;
    assert!(output.stderr.contains("error: "), "{}", output.stderr);
}

/// Unreachable for a moment, as after a reboot: the server starts, and its calls fail until they come.
#[tokio::test]
async fn aws_credentials_may_come_after_the_start() {
    let (sandbox, aws) = (Sandbox::new(), Aws::start().await);
    let container = format!("{}/absent", aws.endpoint.url);
    let variables = [("AWS_REGION", "ap-southeast-1"), ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.as_str())];
    let server = start(&sandbox, &aws, &variables).await;
    server.process.stderr.line("the AWS credentials cannot be loaded yet").await;
    let mut client = ConversationClient::new(server.channel().await);
    let request = ListSessionsRequest { user_id: USER.to_owned(), ..Default::default() };
    assert_eq!(client.list_sessions(request).await.unwrap_err().code(), tonic::Code::Unavailable);
    server.process.stderr.lines_with("the AWS credentials cannot be loaded", 2).await;
}

/// DynamoDB that leaves keys unprocessed, and then does not.
#[tokio::test]
async fn unprocessed_keys_fail_a_call_only_if_they_stay() {
    let sandbox = Sandbox::new();
    let left = Arc::new(Mutex::new(usize::MAX));
    let responding = left.clone();
    let dynamo = HttpDouble::start(move |request: HttpRequest| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let mut left = responding.lock().unwrap();
        let unprocessed = if *left > 0 { body["RequestItems"].clone() } else { json!({}) };
        *left = left.saturating_sub(1);
        let answer = (200, json!({ "UnprocessedKeys": unprocessed }).to_string());
        async move { answer }
    })
    .await;
    let variables = [
        NO_DATABASE,
        CONVERSATIONS,
        ("AWS_ENDPOINT_URL_DYNAMODB", dynamo.url.as_str()),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", "ID"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let server = sandbox.start_listening(&variables).await;
    let mut client = ConversationClient::new(server.channel().await);
    let get = agent_service::proto::agent_v1::GetSessionRequest {
        user_id: USER.to_owned(),
        session_id: "s".to_owned(),
        ..Default::default()
    };
    let failed = client.get_session(get.clone()).await.unwrap_err();
    assert_eq!(failed.code(), tonic::Code::Unavailable, "{failed:?}");
    server.process.stderr.line("DynamoDB is over its throughput").await;
    *left.lock().unwrap() = 3;
    assert_eq!(client.get_session(get).await.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(*left.lock().unwrap(), 0);
}

#[tokio::test]
async fn signal_ends_a_start_that_waits_for_credentials() {
    // Accepts a connection and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let container = format!("http://{}/container", silent.local_addr().unwrap());
    let variables = [
        NO_DATABASE,
        CONVERSATIONS,
        NO_INSTANCE,
        ("AWS_REGION", "ap-southeast-1"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.as_str()),
    ];
    for signal in [Signal::TERM, Signal::INT] {
        let process = Process::start(Sandbox::new().command(&[], &variables));
        let _connection = within_timeout("a request for credentials", silent.accept()).await.unwrap();
        process.signal(signal);
        // A start that fails for lack of credentials would exit with another code.
        let output = process.wait_for_success().await;
        assert_eq!((output.stdout.as_str(), output.stderr.contains("error")), ("", false), "{output:?}");
    }
}
