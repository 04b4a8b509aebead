//! `grpc.health.v1.Health`: one status for all services of the server. Unlike `tonic-health`'s own service, a watch of an unknown
//! service stays open and reports SERVICE_UNKNOWN, as the protocol demands
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>): a client would retry a failed watch without end.

use std::pin::Pin;

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

pub(super) struct HealthApi {
    /// Names of the services; the empty name is the server as a whole.
    pub(super) services: Vec<&'static str>,
    pub(super) is_serving: watch::Receiver<bool>,
}

impl HealthApi {
    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(&service)
    }
}

fn report(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn status(is_serving: bool) -> ServingStatus {
    if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing }
}

#[tonic::async_trait]
impl Health for HealthApi {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !self.knows(&request.get_ref().service) {
            return Err(Status::not_found("the server has no such service"));
        }
        Ok(Response::new(report(status(*self.is_serving.borrow()))))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let first = if self.knows(&request.get_ref().service) { None } else { Some(ServingStatus::ServiceUnknown) };
        let reports =
            stream::unfold((self.is_serving.clone(), first, None), |(mut is_serving, unknown, sent)| async move {
                let next = match unknown {
                    Some(_) if sent.is_some() => std::future::pending().await,
                    Some(unknown) => unknown,
                    None => {
                        let is_new = |serving: &bool| sent != Some(status(*serving));
                        let serving = *is_serving.wait_for(is_new).await.ok()?;
                        status(serving)
                    }
                };
                Some((Ok(report(next)), (is_serving, unknown, Some(next))))
            });
        Ok(Response::new(Box::pin(reports)))
    }
}
