use std::{collections::BTreeMap, time::Duration};

use agent_service::{
    conversation::{
        WithDeadlines,
        dynamodb::{DynamoAccess, DynamoConversations, DynamoTable},
    },
    identity::UserId,
};
use futures_util::future::BoxFuture;
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::fixture::{Backdoor, MAX_TURN};

const DEFINITION: &str = include_str!("../../infra/dynamodb-table.json");
const DAY: i64 = 24 * 60 * 60;

pub struct TestTable {
    pub name: String,
    url: String,
    client: reqwest::Client,
}

pub type Attributes = Map<String, Value>;

impl TestTable {
    pub async fn create() -> Option<Self> {
        let url = std::env::var("TEST_DYNAMODB_URL").ok()?;
        // The client requires a TLS provider even without TLS.
        let _chosen = rustls::crypto::ring::default_provider().install_default();
        let table = Self { name: format!("test-{}", Uuid::new_v4().simple()), url, client: reqwest::Client::new() };
        let mut definition: Value = serde_json::from_str(DEFINITION).unwrap();
        definition["TableName"] = json!(table.name);
        table.ask("CreateTable", definition).await;
        Some(table)
    }

    pub fn store(&self, admit_timeout: Duration) -> WithDeadlines<DynamoConversations> {
        store_of(&self.name, admit_timeout)
    }

    async fn ask(&self, operation: &str, body: Value) -> Value {
        self.try_to(operation, &body).await.unwrap()
    }

    async fn try_to(&self, operation: &str, body: &Value) -> Result<Value, String> {
        let signed = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/dynamodb/aws4_request, \
                      SignedHeaders=host, Signature=none";
        let request = self.client.post(&self.url).header("authorization", signed);
        let request = request.header("x-amz-target", format!("DynamoDB_20120810.{operation}"));
        let request = request.header("content-type", "application/x-amz-json-1.0").body(body.to_string());
        let response = request.send().await.unwrap();
        let status = response.status();
        let answer = response.text().await.unwrap();
        if status.is_success() { Ok(serde_json::from_str(&answer).unwrap()) } else { Err(answer) }
    }

    pub async fn items(&self, prefix: &str) -> Vec<Attributes> {
        let (mut items, mut from) = (Vec::new(), Value::Null);
        loop {
            let mut scan = json!({"TableName": self.name, "ConsistentRead": true});
            if !from.is_null() {
                scan["ExclusiveStartKey"] = from;
            }
            let mut page = self.ask("Scan", scan).await;
            items.extend(page["Items"].as_array().unwrap().iter().map(|item| item.as_object().unwrap().clone()));
            from = page["LastEvaluatedKey"].take();
            if from.is_null() {
                break;
            }
        }
        items.retain(|item| text(item, "item_id").starts_with(prefix));
        items
    }

    pub async fn put(&self, item: Attributes) {
        self.ask("PutItem", json!({"TableName": self.name, "Item": item})).await;
    }

    pub async fn delete(&self, item: &Attributes) {
        let key = json!({"user_id": item["user_id"], "item_id": item["item_id"]});
        self.ask("DeleteItem", json!({"TableName": self.name, "Key": key})).await;
    }

    /// Retried if the item changes meanwhile.
    async fn age(&self, mut item: Attributes, seconds: i64) {
        let moments = ["alive_until", "held_until", "watched_until", "started_at", "kept_at", "resumed_at"];
        let times: Vec<_> = moments.map(|name| (name, 1_000)).into_iter().chain([("expires_at", 1)]).collect();
        let key = json!({"user_id": item["user_id"], "item_id": item["item_id"]});
        loop {
            let (mut changes, mut conditions, mut values) = (Vec::new(), Vec::new(), Map::new());
            for (name, a_second) in times.iter().filter(|(name, _)| item.contains_key(*name)) {
                let before = number(&item, name);
                changes.push(format!("{name} = :{name}"));
                conditions.push(format!("{name} = :old_{name}"));
                values.insert(format!(":{name}"), json!({"N": (before - seconds * a_second).to_string()}));
                values.insert(format!(":old_{name}"), json!({"N": before.to_string()}));
            }
            if changes.is_empty() {
                return;
            }
            let update = json!({
                "TableName": self.name, "Key": key, "UpdateExpression": format!("SET {}", changes.join(", ")),
                "ConditionExpression": conditions.join(" AND "), "ExpressionAttributeValues": values,
            });
            if self.try_to("UpdateItem", &update).await.is_ok() {
                return;
            }
            let get = json!({"TableName": self.name, "Key": key, "ConsistentRead": true});
            match self.ask("GetItem", get).await["Item"].take() {
                Value::Object(changed) => item = changed,
                _ => return,
            }
        }
    }

    async fn age_usage(&self, items: Vec<Attributes>, time: Duration) {
        let mut aged: BTreeMap<(String, String), Attributes> = BTreeMap::new();
        let mut add = |like: &Attributes, day: String, name: &str, count: i64| {
            let user = text(like, "user_id").to_owned();
            let item = aged.entry((user, day.clone())).or_insert_with(|| {
                let mut item = like.clone();
                item.retain(|name, _| name == "user_id" || name == "expires_at");
                item.insert("item_id".to_owned(), json!({"S": format!("usage/{day}")}));
                item
            });
            let before = item.get(name).map_or(0, |_| number(item, name));
            item.insert(name.to_owned(), json!({"N": (before + count).to_string()}));
        };
        let seconds = i64::try_from(time.as_secs()).unwrap();
        for item in &items {
            self.delete(item).await;
            let day: Date = text(item, "item_id").trim_start_matches("usage/").parse().unwrap();
            let start = day.to_zoned(TimeZone::UTC).unwrap().timestamp().as_second();
            for name in item.keys() {
                if let Some(minute) = name.strip_prefix("minute_") {
                    let past = start + minute.parse::<i64>().unwrap() * 60 - seconds;
                    let name = format!("minute_{}", past.rem_euclid(DAY) / 60);
                    add(item, day_of(past), &name, number(item, &format!("minute_{minute}")));
                } else if name == "tokens" {
                    add(item, day_of(Timestamp::now().as_second() - seconds), name, number(item, name));
                }
            }
        }
        for (_, item) in aged {
            self.put(item).await;
        }
    }
}

#[async_trait::async_trait]
impl Backdoor for TestTable {
    async fn let_pass(&self, time: Duration) {
        let seconds = i64::try_from(time.as_secs()).unwrap();
        let (usage, others): (Vec<_>, Vec<_>) =
            self.items("").await.into_iter().partition(|item| text(item, "item_id").starts_with("usage/"));
        for item in others {
            self.age(item, seconds).await;
        }
        self.age_usage(usage, time).await;
    }

    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    async fn at_one_moment<'a>(&'a self, user: &'a UserId, work: BoxFuture<'a, ()>) {
        let before = format!("{:.6}", Timestamp::now());
        work.await;
        for mut item in self.items("session/").await {
            let updated = text(&item, "updated");
            if text(&item, "user_id") == user.as_str() && updated > before.as_str() {
                let (_, id) = updated.split_once('/').unwrap();
                let moved = json!({"S": format!("{before}/{id}")});
                item.insert("updated".to_owned(), moved);
                self.put(item).await;
            }
        }
    }
}

pub fn store_of(table: &str, admit_timeout: Duration) -> WithDeadlines<DynamoConversations> {
    let access = DynamoAccess::from_env().unwrap();
    let table = DynamoTable { name: table.to_owned(), access, extraction_jobs: None };
    DynamoConversations::with_deadlines(table, MAX_TURN, admit_timeout)
}

pub fn text<'a>(item: &'a Attributes, name: &str) -> &'a str {
    item[name]["S"].as_str().unwrap()
}

pub fn number(item: &Attributes, name: &str) -> i64 {
    item[name]["N"].as_str().unwrap().parse().unwrap()
}

fn day_of(second: i64) -> String {
    Timestamp::from_second(second).unwrap().to_zoned(TimeZone::UTC).date().to_string()
}
