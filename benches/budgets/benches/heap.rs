//! Heap of an open stream, and allocations of a frame, by a counting allocator.

#![expect(unsafe_code, reason = "an allocator is unsafe")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use budgets::{BenchService, OpenStream, Persistence, budget};

/// Enough that what grows by doubling, such as the map of runs, counts in each stream by its share.
const STREAMS: usize = 512;
const REPLAYS: usize = 600;
const FRAMES: usize = 64;

struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Relaxed);
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn main() -> io::Result<()> {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("nothing is measured without --bench, which `cargo bench` passes");
        return Ok(());
    }
    for (persistence, name) in [(Persistence::Direct, "direct"), (Persistence::Stored, "kept")] {
        let service = BenchService::start(persistence);
        // The first one initializes what all share.
        let mut first = service.open(STREAMS);
        let before = ALLOCATIONS.load(Relaxed);
        service.read(&mut first, FRAMES);
        let allocations = ALLOCATIONS.load(Relaxed) - before;
        budget(
            &format!("allocations-of-{FRAMES}-frames-{name}"),
            allocations as f64,
            "allocations",
            &format!("allocations while a stream sends {FRAMES} deltas, {name}"),
        )?;
        let before = LIVE_BYTES.load(Relaxed);
        let streams: Vec<OpenStream> = (0..STREAMS).map(|number| service.open(number)).collect();
        let held = LIVE_BYTES.load(Relaxed) - before;
        budget(
            &format!("heap-of-an-open-stream-{name}"),
            (held / STREAMS) as f64,
            "bytes",
            &format!("heap of an open stream, {name}, without the transport's connection"),
        )?;
        if persistence == Persistence::Stored {
            let before = LIVE_BYTES.load(Relaxed);
            let replays: Vec<OpenStream> = (0..REPLAYS).map(|number| service.replay(number)).collect();
            let held = LIVE_BYTES.load(Relaxed) - before;
            budget(
                "heap-of-an-unread-replay",
                (held / REPLAYS) as f64,
                "bytes",
                "heap of a replay of an answer of 80 kB that is not read, without the transport's connection",
            )?;
            std::mem::forget(replays);
        }
        // An orderly end would log a line for each stream.
        std::mem::forget((service, streams, first));
    }
    Ok(())
}
