//! Figures under `/metrics`, in Prometheus's text form: the page, and where it is served. Not what the figures are called or mean,
//! which whoever counts says. No label names a tenant.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tidelog_http::Limits;
use tokio::net::TcpListener;
use tokio::sync::watch;
use warp::Filter;

use crate::shutdown::stopped;

/// Connections of whoever collects; there are few of them.
const CONNECTIONS: usize = 16;

/// Binds the address.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener
        .with_context(|| format!("cannot listen on {address}: choose another address with --metrics-listen"))
}

/// Has the figures of the whole process kept from now on. Once.
pub(crate) fn keep() -> Result<PrometheusHandle> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).context("figures are kept already")?;
    Ok(handle)
}

/// Serves them until `stop`.
pub(crate) async fn serve(handle: PrometheusHandle, listener: TcpListener, stop: watch::Receiver<bool>) {
    let page = warp::path!("metrics").and(warp::get()).map(move || {
        let text = handle.render();
        warp::reply::with_header(text, "content-type", "text/plain; version=0.0.4; charset=utf-8")
    });
    let limits = Limits {
        max_connections: CONNECTIONS,
        shutdown_deadline: std::time::Duration::from_secs(1),
        ..Limits::default()
    };
    tidelog_http::serve(listener, page, limits, stopped(stop)).await;
}
