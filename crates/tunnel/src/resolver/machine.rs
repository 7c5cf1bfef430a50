//! The resolver of the network as any other program of the machine asks it: by its address, through
//! what the machine routes, filters and redirects.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use tokio::{net::UdpSocket, time};

use super::{RecordKind, parse_answer, parse_name, query};

/// How often it is asked, and how long an answer may take.
const ATTEMPTS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks the resolver at `address` for the TXT record of `name`, which there is; says what came back
/// instead.
pub async fn ask_as_machine(address: Ipv6Addr, name: &str) -> Result<(), String> {
    let asked = exchange((address, 53).into(), name).await;
    match asked {
        Ok(Some(ResponseCode::NoError)) => Ok(()),
        Ok(Some(code)) => Err(format!("the answer is {code}")),
        Ok(None) => Err("no answer comes".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns what the answer says; an empty one is as good as that there is no such name.
async fn exchange(server: SocketAddr, name: &str) -> io::Result<Option<ResponseCode>> {
    let name = parse_name(&format!("{name}.")).ok_or(io::ErrorKind::InvalidInput)?;
    let mut id = [0; 2];
    os::random::fill(&mut id);
    let query = query(u16::from_be_bytes(id), &name, RecordKind::Txt);
    let bytes = query.to_vec().map_err(io::Error::other)?;
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; 4_096];
    for _ in 0..ATTEMPTS {
        socket.send(&bytes).await?;
        let heard = async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                if let Some(answer) = parse_answer(&buffer[..length], &query) {
                    return io::Result::Ok(answer);
                }
            }
        };
        if let Ok(answer) = time::timeout(PATIENCE, heard).await {
            let answer = answer?;
            let mut records = answer.answers.iter();
            let found = records.any(|record| record.record_type() == RecordType::TXT);
            let code = answer.metadata.response_code;
            let is_empty = code == ResponseCode::NoError && !found;
            return Ok(Some(if is_empty {
                ResponseCode::NXDomain
            } else {
                code
            }));
        }
    }
    Ok(None)
}
