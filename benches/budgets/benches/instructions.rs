//! Instructions, counted by callgrind. The names and numbers of the budgets are in `benches/budgets.py`.

#![expect(clippy::disallowed_methods, reason = "the macro of gungraun ends the process")]

use std::hint::black_box;

use agent_service::{llm::parse_pieces, memory::terms};
use budgets::{BenchService, OpenStream, Persistence};
use bytes::Bytes;
use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use http::Request;
use tonic::body::Body;

const FRAMES: usize = 64;

fn open(persistence: Persistence) -> (BenchService, OpenStream) {
    let service = BenchService::start(persistence);
    let stream = service.open(0);
    (service, stream)
}

#[library_benchmark]
#[bench::direct(args = (Persistence::Direct), setup = open)]
#[bench::kept(args = (Persistence::Stored), setup = open)]
fn frames((service, mut stream): (BenchService, OpenStream)) -> (BenchService, OpenStream) {
    service.read(&mut stream, FRAMES);
    (service, stream)
}

/// The first turn initializes what all share.
fn prepare(persistence: Persistence) -> (BenchService, OpenStream, Request<Body>) {
    let (service, stream) = open(persistence);
    (service, stream, BenchService::request(1))
}

#[library_benchmark]
#[bench::direct(args = (Persistence::Direct), setup = prepare)]
#[bench::kept(args = (Persistence::Stored), setup = prepare)]
fn admission(
    (service, first, request): (BenchService, OpenStream, Request<Body>),
) -> (BenchService, OpenStream, OpenStream) {
    let stream = service.admit(request);
    (service, first, stream)
}

/// A hundred events as OpenAI sends them, in pieces of one event each.
fn events() -> Vec<Bytes> {
    let event = |number| {
        format!(
            "data: {{\"id\":\"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG\",\"object\":\"chat.completion.chunk\",\
             \"created\":1741570283,\"model\":\"gpt-4o-2024-08-06\",\"service_tier\":\"default\",\
             \"system_fingerprint\":\"fp_fc9f1d7035\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" vector\"}},\
             \"logprobs\":null,\"finish_reason\":{}}}]}}\n\n",
            if number == 99 { "\"stop\"" } else { "null" }
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    // The first parse initializes what all share.
    let _ = runtime.map(|runtime| runtime.block_on(parse_pieces(vec![Bytes::from(event(99))])));
    (0..100).map(|number| Bytes::from(event(number))).collect()
}

#[library_benchmark]
#[bench::openai(events())]
fn provider_events(events: Vec<Bytes>) -> (String, String) {
    futures_util::FutureExt::now_or_never(parse_pieces(black_box(events))).unwrap_or_default()
}

/// A kilobyte of text. The tokenizer has run before.
fn text(sentence: &str) -> String {
    let mut text = String::new();
    while text.len() + sentence.len() <= 1_000 {
        text.push_str(sentence);
    }
    drop(terms(&text));
    text
}

#[library_benchmark]
#[bench::chinese(args = ("昨天我在图书馆复习了高等数学的特征值和特征向量，还是没有弄懂对角化的条件。"), setup = text)]
#[bench::english(args = ("Yesterday I was revising eigenvalues in the library and couldn't understand diagonalization. "), setup = text)]
fn tokenizing(text: String) -> Vec<String> {
    terms(black_box(&text))
}

library_benchmark_group!(name = service, benchmarks = [frames, admission]);
library_benchmark_group!(name = parsing, benchmarks = [provider_events, tokenizing]);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = [service, parsing]
);
