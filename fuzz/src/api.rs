//! Bodies of requests and responses of the API.

use model::api;
use serde::{Serialize, de::DeserializeOwned};

/// JSON: whatever is accepted is written back as something that is accepted and written alike.
pub fn bodies(data: &[u8]) {
    body::<api::EnrolRequest>(data);
    body::<api::Enrolled>(data);
    body::<api::LoggedIn>(data);
    body::<api::GatewayRequest>(data);
    body::<api::GatewayEnrolled>(data);
    body::<api::MapQuery>(data);
    body::<api::NodeByKey>(data);
    body::<api::NewOrg>(data);
    body::<api::Page<api::Node>>(data);
    body::<api::NodeChange>(data);
    body::<api::NewToken>(data);
    body::<api::CreatedToken>(data);
    body::<api::NewService>(data);
    body::<api::Page<api::AuditEntry>>(data);
    body::<api::ErrorBody>(data);
    body::<api::WhoAmI>(data);
}

fn body<T: DeserializeOwned + Serialize>(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(data) else {
        return;
    };
    let text = serde_json::to_string(&value).expect("a body is plain data");
    let again: T = serde_json::from_str(&text).expect("our own body");
    assert_eq!(serde_json::to_string(&again).expect("plain data"), text);
}
