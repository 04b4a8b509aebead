use std::sync::{Arc, Mutex, PoisonError};

use agent_service::llm::{ChatModel, ModelEvent, ModelRequest, ModelStream};
use async_stream::stream;
use tokio::sync::Semaphore;

/// As long as the usual delta of a provider.
pub(crate) const DELTA: &str = " vector";

/// Its answers have no end, and their deltas come one by one when they are asked for: demo mode needs a clock for that.
pub(crate) struct SteadyModel {
    pub(crate) named: Arc<dyn ChatModel>,
    pub(crate) deltas: Arc<DeltasOfNext>,
}

/// A permit is a delta of the answer that begins next.
#[derive(Default)]
pub(crate) struct DeltasOfNext(Mutex<Option<Arc<Semaphore>>>);

impl DeltasOfNext {
    pub(crate) fn create(&self) -> Arc<Semaphore> {
        let deltas = Arc::new(Semaphore::new(0));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(deltas.clone());
        deltas
    }

    fn take(&self) -> Arc<Semaphore> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_else(|| Arc::new(Semaphore::new(0)))
    }
}

impl ChatModel for SteadyModel {
    fn answer(self: Arc<Self>, _request: ModelRequest) -> ModelStream {
        let deltas = self.deltas.take();
        Box::pin(stream! {
            while let Ok(delta) = deltas.acquire().await {
                delta.forget();
                yield Ok(ModelEvent::Delta(DELTA.to_owned()));
            }
        })
    }

    fn name<'a>(&'a self, requested: Option<&'a str>) -> &'a str {
        self.named.name(requested)
    }

    fn allows(&self, model: &str) -> bool {
        self.named.allows(model)
    }
}
