//! The DynamoDB emulator of `infra/dynamodb.sh` and its stream.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

pub const TABLE: &str = "agent-conversations";

/// The variables of the emulator; `None` without it.
pub fn variables() -> Option<Vec<(&'static str, String)>> {
    std::env::var("TEST_DYNAMODB_URL").ok()?;
    let names = ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_DYNAMODB"];
    Some(names.map(|name| (name, std::env::var(name).unwrap_or_default())).into())
}

/// The stream records of a user, the oldest first.
pub async fn records_of(user_id: &str) -> Vec<Value> {
    let table = call_unary("DynamoDB_20120810.DescribeTable", json!({ "TableName": TABLE })).await;
    let stream = &table["Table"]["LatestStreamArn"];
    let described = call_unary("DynamoDBStreams_20120810.DescribeStream", json!({ "StreamArn": stream })).await;
    let mut records = Vec::new();
    for shard in described["StreamDescription"]["Shards"].as_array().unwrap() {
        let from = json!({"StreamArn": stream, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"});
        let mut iterator = call_unary("DynamoDBStreams_20120810.GetShardIterator", from).await["ShardIterator"].take();
        while !iterator.is_null() {
            let mut page =
                call_unary("DynamoDBStreams_20120810.GetRecords", json!({ "ShardIterator": iterator })).await;
            let found = page["Records"].as_array().cloned().unwrap_or_default();
            iterator = if found.is_empty() { Value::Null } else { page["NextShardIterator"].take() };
            records.extend(found);
        }
    }
    records.retain(|record| record["dynamodb"]["Keys"]["user_id"]["S"] == user_id);
    records
}

/// Calls the emulator, which ignores signatures.
async fn call_unary(target: &str, body: Value) -> Value {
    let url = std::env::var("TEST_DYNAMODB_URL").unwrap();
    let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let region = std::env::var("AWS_REGION").unwrap();
    let service = if target.starts_with("DynamoDBStreams") { "streams.dynamodb" } else { "dynamodb" };
    let body = body.to_string();
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {service}.{region}.amazonaws.com\r\nx-amz-target: {target}\r\nconnection: close\r\n\
         authorization: AWS4-HMAC-SHA256 Credential=test/20260101/{region}/dynamodb/aws4_request, SignedHeaders=host, \
         Signature=0\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{target}: {answer}");
    serde_json::from_str(body).unwrap()
}
