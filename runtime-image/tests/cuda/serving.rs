//! `serve` on a played card, from loading to the end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chandler_runtime::compute::cuda::card::CardError;
use chandler_runtime::config::{Config, Device, ServeArgs};
use chandler_runtime::device::{Place, Settled};
use chandler_runtime::serve::{Listeners, ServeError, load_at, serve_on};
use clap::Parser;
use tokio::net::TcpListener;

use crate::card;
use crate::golden::fixture;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    serve: ServeArgs,
}

fn config(model: &Path) -> Config {
    let model = model.to_str().unwrap();
    let line = [
        "serve",
        "--model",
        model,
        "--served-name",
        "m",
        "--device",
        "cuda",
    ];
    Config::from(&Line::parse_from(line).serve)
}

#[tokio::test]
async fn a_lost_card_makes_the_pod_unready_with_the_reason_and_ends_the_process() {
    let card = card();
    let place = Place::Card(Arc::new(card.clone()));
    let settled = Settled {
        place: place.clone(),
        obstacle: None,
    };
    let config = config(&fixture("model"));
    assert_eq!(config.device, Device::Cuda);
    let bind = || TcpListener::bind("127.0.0.1:0");
    let listeners = Listeners {
        api: bind().await.unwrap(),
        management: bind().await.unwrap(),
    };
    let at = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let (api, management) = (at(&listeners.api), at(&listeners.management));
    let loading = config.clone();
    let load = move || load_at(&loading, &place);
    let served = tokio::spawn(serve_on(
        listeners,
        config,
        std::future::pending(),
        settled,
        load,
    ));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = async |path: &str| {
        let response = client
            .get(format!("{management}{path}"))
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    while get("/readyz").await.0 != 200 {
        assert!(!served.is_finished(), "it loads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(card.products() > 0, "large products are tried first");
    let (_, status) = get("/status").await;
    assert!(status.contains("\"device\":\"cuda\""), "{status}");
    let ask = || {
        let body = r#"{"model":"m","prompt":"a","max_tokens":4}"#;
        let post = client.post(format!("{api}/v1/completions"));
        post.header("content-type", "application/json")
            .body(body)
            .send()
    };
    assert_eq!(ask().await.unwrap().status(), 200);
    card.fail_after(3, CardError::Lost("fallen off the bus".to_owned()));
    assert_ne!(ask().await.unwrap().status(), 200);
    // The request hears of it first. Both ports answer for a moment yet; who comes later finds nobody.
    let status = format!("{management}/status");
    while let Ok(response) = client.get(&status).send().await {
        let status = response.text().await.unwrap();
        if status.contains("DeviceLost") {
            assert!(status.contains("fallen off the bus"), "{status}");
            if let Ok(ready) = client.get(format!("{management}/readyz")).send().await {
                assert_eq!(ready.status(), 503);
            }
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(10), served).await;
    match ended.unwrap().unwrap() {
        Err(ServeError::Device(detail)) => {
            assert!(detail.contains("fallen off the bus"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_arena_is_what_is_free_after_loading() {
    let place = Place::Card(Arc::new(card()));
    let loaded = load_at(&config(&fixture("model")), &place).unwrap();
    assert!(loaded.model.capacity().blocks > 0);
    let error = load_at(
        &config(&fixture("model")),
        &Place::Card(Arc::new(crate::Emulated::new(1 << 20).unwrap())),
    );
    let error = error.err().unwrap().to_string();
    assert!(error.contains("no room"), "{error}");
}
