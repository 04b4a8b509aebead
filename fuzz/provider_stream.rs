//! Provider streams: cutting the bytes anywhere does not change the result, and nothing panics or hangs.

#![no_main]

use agent_service::llm::parse_pieces;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u16>, Vec<u8>)| {
    let (cuts, bytes) = input;
    let mut at: Vec<usize> = cuts.into_iter().map(|cut| usize::from(cut) % (bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    let pieces = at.windows(2).map(|ends| Bytes::copy_from_slice(&bytes[ends[0]..ends[1]])).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let cut = runtime.block_on(parse_pieces(pieces));
    let uncut = runtime.block_on(parse_pieces(vec![Bytes::from(bytes)]));
    assert_eq!(cut, uncut);
});
