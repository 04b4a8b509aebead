//! Requests to DynamoDB and their order, recorded by an HTTP client whose responses the test scripts.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use aws_sdk_dynamodb::config::{Credentials, HttpClient, RuntimeComponents, SharedHttpClient};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    orchestrator::{HttpRequest, HttpResponse},
};
use aws_smithy_types::body::SdkBody;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::conversation::{NewTurn, RunOutcome, StoreError};

type Answer = Box<dyn Fn(&str, &Value, usize) -> (u16, Value) + Send + Sync>;

#[derive(Clone)]
struct ScriptedHttp {
    answer: Arc<Answer>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl std::fmt::Debug for ScriptedHttp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScriptedHttp")
    }
}

impl HttpClient for ScriptedHttp {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for ScriptedHttp {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let body: Value = serde_json::from_slice(request.body().bytes().unwrap()).unwrap();
        let mut asked = self.asked.lock().unwrap();
        let before = asked.iter().filter(|(other, _)| *other == operation).count();
        let (status, answer) = (self.answer)(&operation, &body, before);
        asked.push((operation, body));
        let response = ::http::Response::builder().status(status).body(SdkBody::from(answer.to_string())).unwrap();
        HttpConnectorFuture::ready(Ok(HttpResponse::try_from(response).unwrap()))
    }
}

impl ScriptedHttp {
    fn new(answer: impl Fn(&str, &Value, usize) -> (u16, Value) + Send + Sync + 'static) -> Self {
        Self { answer: Arc::new(Box::new(answer)), asked: Arc::default() }
    }

    fn store(&self) -> DynamoConversations {
        let credentials = Credentials::new("id", "secret", None, None, "test");
        let http = SharedHttpClient::new(self.clone());
        let access = DynamoAccess::new(http, credentials, "us-east-1".to_owned(), None);
        let table = Table::new("table".to_owned(), access);
        DynamoConversations { table, extraction_jobs: None, max_turn_duration: Duration::from_secs(60) }
    }

    fn operations(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(operation, _)| operation.clone()).collect()
    }

    fn bodies(&self, operation: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(other, _)| other == operation).map(|(_, body)| body.clone()).collect()
    }
}

fn cancelled(reasons: &[(&str, Value)]) -> (u16, Value) {
    let reasons: Vec<_> = reasons
        .iter()
        .map(|(code, item)| match item {
            Value::Null => json!({"Code": code}),
            item => json!({"Code": code, "Item": item}),
        })
        .collect();
    (400, json!({"__type": "x#TransactionCanceledException", "Message": "no", "CancellationReasons": reasons}))
}

fn lease() -> Lease {
    Lease { key: NewRun::example().key, lease_token: Uuid::nil() }
}

fn ending(record: Vec<u8>) -> RunEnding {
    let turn = NewTurn {
        record,
        tokens: 1,
        is_complete: true,
        provisional_title: "Secret title".to_owned(),
        may_be_learned: true,
    };
    RunEnding {
        chunk: FrameChunk { first: 1, count: 1, frames: b"frames".to_vec() },
        outcome: RunOutcome::Final,
        turn: Some(turn),
        tokens: 1,
        resumed_turn: None,
        profile: None,
    }
}

fn running() -> Value {
    let holder = Uuid::nil().to_string();
    json!({
        "item_id": {"S": "run/r"}, "holder": {"S": holder}, "phase": {"S": "running"}, "holds_session": {"BOOL": true},
    })
}

#[tokio::test]
async fn admission_is_one_transaction_beside_the_profile() {
    let http = ScriptedHttp::new(|_, _, _| (200, json!({})));
    let admitted = http.store().admit(&NewRun::example()).await.unwrap();
    assert!(matches!(admitted, AdmitOutcome::Started { profile: None, .. }));
    let mut operations = http.operations();
    operations.sort();
    assert_eq!(operations, ["GetItem", "TransactWriteItems"]);
    let items = http.bodies("TransactWriteItems")[0]["TransactItems"].as_array().unwrap().clone();
    assert_eq!(items.len(), 4);
    for item in items {
        let (_, write) = item.as_object().unwrap().iter().next().unwrap();
        assert!(write["ConditionExpression"].is_null() || write["ReturnValuesOnConditionCheckFailure"] == "ALL_OLD");
    }
}

#[tokio::test]
async fn admission_retries_after_a_conflict() {
    let http = ScriptedHttp::new(|operation, _, before| match (operation, before) {
        ("TransactWriteItems", 0) => cancelled(&[
            ("None", Value::Null),
            ("TransactionConflict", Value::Null),
            ("None", Value::Null),
            // Not conclusive as long as there is a conflict.
            ("ConditionalCheckFailed", json!({"holder": {"S": "h"}, "request_id": {"S": "other"}})),
        ]),
        _ => (200, json!({})),
    });
    let admitted = http.store().admit(&NewRun::example()).await.unwrap();
    assert!(matches!(admitted, AdmitOutcome::Started { .. }), "{admitted:?}");
    let tokens: Vec<_> =
        http.bodies("TransactWriteItems").iter().map(|body| body["ClientRequestToken"].clone()).collect();
    assert_eq!(tokens.len(), 2);
    assert_ne!(tokens[0], tokens[1]);
}

#[tokio::test]
async fn admission_with_lost_answer_starts_once() {
    let http = ScriptedHttp::new(|operation, body, before| match (operation, before) {
        ("TransactWriteItems", 0) => (500, json!({"__type": "x#InternalServerError"})),
        ("TransactWriteItems", _) => {
            let run = body["TransactItems"][0]["Put"]["Item"].clone();
            cancelled(&[("ConditionalCheckFailed", run)])
        }
        _ => (200, json!({})),
    });
    let admitted = http.store().admit(&NewRun::example()).await.unwrap();
    assert!(matches!(admitted, AdmitOutcome::Started { .. }), "{admitted:?}");
}

#[tokio::test]
async fn long_turn_is_staged_before_it_is_committed() {
    let http = ScriptedHttp::new(|operation, _, _| match operation {
        "BatchGetItem" => (200, json!({"Responses": {"table": [running()]}})),
        _ => (200, json!({})),
    });
    http.store().finish(&lease(), &ending(vec![7; 2_000_000])).await.unwrap();
    let parts = 2_000_000_usize.div_ceil(384 * 1_024);
    let expected: Vec<_> = std::iter::once("BatchGetItem")
        .chain(std::iter::repeat_n("PutItem", parts))
        .chain(std::iter::repeat_n("UpdateItem", parts))
        .chain(["TransactWriteItems"])
        .collect();
    assert_eq!(http.operations(), expected);
    for part in http.bodies("PutItem") {
        // Parts of a process that died expire.
        assert!(part["Item"]["expires_at"]["N"].is_string());
    }
    for part in http.bodies("UpdateItem") {
        assert_eq!(part["UpdateExpression"], "REMOVE expires_at");
    }
    let commit = &http.bodies("TransactWriteItems")[0];
    assert!(commit.to_string().len() < 10_000);
    let turn = commit["TransactItems"]
        .as_array()
        .unwrap()
        .iter()
        .find(|write| write["Put"]["Item"]["item_id"]["S"].as_str().is_some_and(|item| item.starts_with("turn/")));
    let turn = &turn.unwrap()["Put"];
    assert_eq!(turn["Item"]["value_parts"]["N"], parts.to_string());
    assert_eq!(turn["ConditionExpression"], "attribute_not_exists(user_id)");
}

#[tokio::test]
async fn finish_without_lease_deletes_staged_parts() {
    let taken = json!({"holder": {"S": "another"}, "phase": {"S": "running"}});
    let http = ScriptedHttp::new(move |operation, _, _| match operation {
        "BatchGetItem" => (200, json!({"Responses": {"table": [running()]}})),
        "TransactWriteItems" => cancelled(&[("ConditionalCheckFailed", taken.clone())]),
        _ => (200, json!({})),
    });
    let ended = http.store().finish(&lease(), &ending(vec![7; 800_000])).await;
    assert!(matches!(ended, Err(StoreError::LeaseLost)), "{ended:?}");
    let keys = |operation, at: &str| {
        let bodies = http.bodies(operation).into_iter();
        let mut keys: Vec<_> = bodies.map(|body| body[at]["item_id"]["S"].as_str().unwrap().to_owned()).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys("DeleteItem", "Key"), keys("PutItem", "Item"));
    assert_eq!(keys("DeleteItem", "Key").len(), 3);
}

#[tokio::test]
async fn finish_with_lost_answer_succeeds() {
    let http = ScriptedHttp::new(|operation, _, before| match (operation, before) {
        ("BatchGetItem", 0) => (200, json!({"Responses": {"table": [running()]}})),
        ("BatchGetItem", _) => {
            let mut ended = running();
            ended["phase"]["S"] = json!("ended");
            (200, json!({"Responses": {"table": [ended]}}))
        }
        ("TransactWriteItems", 0) => (500, json!({"__type": "x#InternalServerError"})),
        ("TransactWriteItems", _) => {
            let mut ended = running();
            ended["phase"]["S"] = json!("ended");
            cancelled(&[("ConditionalCheckFailed", ended), ("ConditionalCheckFailed", Value::Null)])
        }
        _ => (200, json!({})),
    });
    http.store().finish(&lease(), &ending(b"record".to_vec())).await.unwrap();
}

#[tokio::test]
async fn throttled_write_is_retried_beyond_the_sdk() {
    let http = ScriptedHttp::new(|operation, _, before| match (operation, before) {
        ("UpdateItem", 0..5) => (400, json!({"__type": "x#ThrottlingException"})),
        ("UpdateItem", 5) => (400, json!({"__type": "x#TransactionConflictException"})),
        _ => {
            let mut alive = running();
            alive["alive_until"] = json!({"N": "9999999999999"});
            (200, json!({"Attributes": alive}))
        }
    });
    http.store().checkpoint(&lease(), None).await.unwrap();
    assert_eq!(http.bodies("UpdateItem").len(), 7);
}

#[tokio::test]
async fn error_text_quotes_nothing_of_the_user() {
    let http = ScriptedHttp::new(|operation, _, _| match operation {
        "BatchGetItem" => (200, json!({"Responses": {"table": [running()]}})),
        _ => (400, json!({"__type": "x#ValidationException", "message": "Secret title is too long"})),
    });
    let failed = http.store().finish(&lease(), &ending(b"record".to_vec())).await.unwrap_err();
    assert_eq!(failed.to_string(), "DynamoDB failed: ValidationException");
    let http =
        ScriptedHttp::new(|_, _, _| (400, json!({"__type": "x#AccessDeniedException", "Message": "not allowed"})));
    let key = NewRun::example().key;
    let failed = http.store().get_session(&key.user, &key.session).await.unwrap_err();
    assert_eq!(failed.to_string(), "DynamoDB failed: AccessDeniedException: not allowed");
}

#[tokio::test(start_paused = true)]
async fn unprocessed_keys_are_requested_again_after_a_pause() {
    let http = ScriptedHttp::new(|operation, body, before| match (operation, before) {
        ("BatchGetItem", 0) => (200, json!({"UnprocessedKeys": body["RequestItems"]})),
        _ => (200, json!({})),
    });
    let (key, asked_at) = (NewRun::example().key, tokio::time::Instant::now());
    assert!(http.store().get_session(&key.user, &key.session).await.unwrap().is_none());
    assert_eq!(http.operations(), ["BatchGetItem", "BatchGetItem"]);
    assert!(!asked_at.elapsed().is_zero());
}

/// A request may be sent this often, before a test counts it as repeated without end.
const ENDLESS: usize = 300;

#[tokio::test(start_paused = true)]
async fn keys_that_stay_unprocessed_fail_the_call() {
    let http = ScriptedHttp::new(|operation, body, before| match operation {
        "BatchGetItem" if before < ENDLESS => (200, json!({"UnprocessedKeys": body["RequestItems"]})),
        _ => (200, json!({})),
    });
    let key = NewRun::example().key;
    let failed = http.store().get_session(&key.user, &key.session).await.unwrap_err();
    assert!(matches!(failed, StoreError::Throttled), "{failed}");
    assert!(http.operations().len() < 20, "{:?}", http.operations().len());
}

#[tokio::test(start_paused = true)]
async fn slow_progress_with_keys_is_no_failure() {
    let http = ScriptedHttp::new(|_, body, _| {
        let mut requested = body["RequestItems"].clone();
        let keys = requested["table"]["Keys"].as_array_mut().unwrap();
        let mut item = keys.pop().unwrap();
        item["turns"] = json!({"N": "1"});
        let unprocessed = if keys.is_empty() { json!({}) } else { requested };
        (200, json!({"Responses": {"table": [item]}, "UnprocessedKeys": unprocessed}))
    });
    let user = NewRun::example().key.user;
    let keys = (0..40).map(|number| Key::run(&user, &number.to_string())).collect();
    assert_eq!(http.store().table.batch_get(keys).await.unwrap().len(), 40);
}

#[tokio::test(start_paused = true)]
async fn throttled_reads_are_retried_beyond_the_sdk_and_fail_as_throttled() {
    for operation in ["GetItem", "Query", "BatchGetItem"] {
        for failures in [7, ENDLESS] {
            let http = ScriptedHttp::new(move |asked, _, before| match before {
                before if asked == operation && before < failures => {
                    (400, json!({"__type": "x#ProvisionedThroughputExceededException"}))
                }
                _ => (200, json!({})),
            });
            let (store, user) = (http.store(), NewRun::example().key.user);
            let read = match operation {
                "GetItem" => store.table.get(Key::profile(&user)).await.map(drop),
                "Query" => store.table.query_prefix(&user, "turn/").await.map(drop),
                _ => store.table.batch_get(vec![Key::profile(&user)]).await.map(drop),
            };
            assert_eq!(matches!(read, Err(StoreError::Throttled)), failures == ENDLESS, "{operation}: {read:?}");
            assert_eq!(read.is_ok(), failures == 7, "{operation}: {read:?}");
        }
    }
}

fn delete_request(http: &ScriptedHttp, sessions: SessionSelection) -> impl Future<Output = Result<u32>> {
    let store = http.store();
    async move { store.delete_sessions(&NewRun::example().key.user, &sessions).await }
}

fn one_session() -> SessionSelection {
    SessionSelection::Listed(vec![NewRun::example().key.session])
}

#[tokio::test(start_paused = true)]
async fn deletion_of_user_whose_runs_never_end_fails() {
    let http = ScriptedHttp::new(|operation, _, before| match operation {
        "Query" if before < ENDLESS => (200, json!({"Items": [running()]})),
        _ => (200, json!({})),
    });
    let failed = delete_request(&http, SessionSelection::All).await.unwrap_err();
    assert!(matches!(failed, StoreError::DeletionIncomplete), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn items_that_stay_unprocessed_fail_the_deletion() {
    for (status, answer) in [(200, None), (400, Some(json!({"__type": "x#ThrottlingException"})))] {
        let http = ScriptedHttp::new(move |operation, body, before| match operation {
            "Query" if before == 0 => (200, json!({"Items": [running()]})),
            "BatchWriteItem" if before < ENDLESS => {
                (status, answer.clone().unwrap_or_else(|| json!({"UnprocessedItems": body["RequestItems"]})))
            }
            _ => (200, json!({})),
        });
        let failed = delete_request(&http, SessionSelection::All).await.unwrap_err();
        assert!(matches!(failed, StoreError::Throttled), "{failed}");
    }
}

#[tokio::test(start_paused = true)]
async fn session_whose_deletion_keeps_failing_is_free_again() {
    let http = ScriptedHttp::new(|operation, _, _| match operation {
        "TransactWriteItems" => cancelled(&[("None", Value::Null), ("ConditionalCheckFailed", Value::Null)]),
        _ => (200, json!({})),
    });
    let failed = delete_request(&http, one_session()).await.unwrap_err();
    assert!(matches!(failed, StoreError::DeletionIncomplete), "{failed}");
    let leases = |bodies: Vec<Value>, at: &str| -> Vec<_> {
        bodies.into_iter().filter(|body| body[at]["item_id"]["S"].as_str().unwrap().starts_with("lease/")).collect()
    };
    let (taken, freed) = (leases(http.bodies("PutItem"), "Item"), leases(http.bodies("DeleteItem"), "Key"));
    assert_eq!(freed.len(), 1);
    assert_eq!(freed[0]["ExpressionAttributeValues"][":holder"], taken.last().unwrap()["Item"]["holder"]);
}

#[tokio::test(start_paused = true)]
async fn one_failed_session_does_not_stop_the_deletion_of_others() {
    let http = ScriptedHttp::new(|operation, body, _| match operation {
        "TransactWriteItems" if body.to_string().contains("session/stuck") => {
            cancelled(&[("None", Value::Null), ("ConditionalCheckFailed", Value::Null)])
        }
        _ => (200, json!({})),
    });
    let sessions = ["stuck", "a", "b", "c", "d", "e"].map(|id| SessionId::parse("session_id", id).unwrap());
    let failed = delete_request(&http, SessionSelection::Listed(sessions.into())).await.unwrap_err();
    assert!(matches!(failed, StoreError::DeletionIncomplete), "{failed}");
    let ended: HashSet<_> = http
        .bodies("TransactWriteItems")
        .iter()
        .map(|body| body["TransactItems"][0]["Delete"]["Key"]["item_id"]["S"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ended.len(), 6, "{ended:?}");
}
