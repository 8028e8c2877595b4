//! etcd as it is installed: three members on loopback with its defaults, and a lean client (gRPC over HTTP/2, three
//! messages encoded by hand), so that as little of the measured time as possible is the client's.

use crate::processes::{Processes, free_ports};
use anyhow::{Context, bail};
use bytes::{BufMut, Bytes, BytesMut};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A running etcd of three members.
pub(crate) struct EtcdCluster {
    pub(crate) processes: Processes,
    commands: Vec<Vec<String>>,
    ports: Vec<u16>,
}

impl EtcdCluster {
    pub(crate) fn start(dir: &Path, program: &str) -> anyhow::Result<Self> {
        let ports = free_ports(6)?;
        let (clients, peers) = ports.split_at(3);
        let members: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(index, port)| format!("m{index}=http://127.0.0.1:{port}"))
            .collect();
        let command = |index: usize| {
            let client = format!("http://127.0.0.1:{}", clients[index]);
            let peer = format!("http://127.0.0.1:{}", peers[index]);
            [
                program,
                "--name",
                &format!("m{index}"),
                "--data-dir",
                &dir.join(format!("m{index}")).display().to_string(),
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                "--initial-cluster",
                &members.join(","),
                "--log-level",
                "error",
            ]
            .map(str::to_string)
            .to_vec()
        };
        let commands: Vec<Vec<String>> = (0..3).map(command).collect();
        let mut cluster = Self { processes: Processes::new(3), commands, ports: clients.to_vec() };
        for index in 0..3 {
            cluster.start_member(index)?;
        }
        Ok(cluster)
    }

    pub(crate) fn start_member(&mut self, index: usize) -> anyhow::Result<()> {
        let words = &self.commands[index];
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.processes
            .start(index, &mut command)
            .context("cannot start etcd; install etcd-server, or name it with --etcd")
    }

    /// Waits until a member leads; returns which.
    pub(crate) async fn leader(&self) -> anyhow::Result<usize> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            for (index, port) in self.ports.iter().enumerate() {
                let asked = async { Connection::open(*port).await?.leads().await };
                if let Ok(Ok(true)) = tokio::time::timeout(Duration::from_secs(1), asked).await {
                    return Ok(index);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("etcd has no leader after a minute")
    }

    /// A client with so many connections, all to one member.
    pub(crate) async fn client(&self, member: usize, connections: usize) -> anyhow::Result<EtcdClient> {
        let mut open = Vec::new();
        for _ in 0..connections {
            open.push(Connection::open(self.ports[member]).await?);
        }
        Ok(EtcdClient { connections: open.into(), turn: Arc::default(), ports: self.ports.clone() })
    }
}

/// One HTTP/2 connection.
#[derive(Clone)]
struct Connection {
    sender: h2::client::SendRequest<Bytes>,
}

impl Connection {
    async fn open(port: u16) -> anyhow::Result<Self> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 24);
        let (sender, connection) = builder.handshake(stream).await?;
        tokio::spawn(async move {
            // Its end shows in the calls that wait on it.
            let _ = connection.await;
        });
        Ok(Self { sender })
    }

    async fn call(&self, path: &str, message: &[u8]) -> anyhow::Result<Bytes> {
        let mut sender = self.sender.clone().ready().await?;
        let request = http::Request::post(format!("http://127.0.0.1{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (response, mut stream) = sender.send_request(request, false)?;
        let mut frame = BytesMut::with_capacity(5 + message.len());
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len())?);
        frame.put_slice(message);
        stream.send_data(frame.freeze(), true)?;
        let response = response.await?;
        let status = |headers: &http::HeaderMap| headers.get("grpc-status").map(|status| status == "0");
        let in_headers = status(response.headers());
        let mut body = response.into_body();
        let mut answer = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            answer.extend_from_slice(&chunk);
        }
        let in_trailers = body.trailers().await?.as_ref().and_then(status);
        anyhow::ensure!(in_trailers.or(in_headers) == Some(true), "etcd refused {path}");
        anyhow::ensure!(answer.len() >= 5, "etcd answered nothing to {path}");
        Ok(answer.split_off(5).freeze())
    }

    /// Whether this member leads: its own id is the leader's.
    async fn leads(&self) -> anyhow::Result<bool> {
        let status = self.call("/etcdserverpb.Maintenance/Status", &[]).await?;
        let (mut own, mut leader) = (0, 0);
        for (field, value) in fields(&status) {
            match (field, value) {
                (1, Field::Bytes(header)) => {
                    own = fields(header)
                        .find_map(|(field, value)| value.number().filter(|_| field == 2))
                        .unwrap_or(0);
                }
                (4, Field::Number(id)) => leader = id,
                _ => {}
            }
        }
        Ok(own != 0 && own == leader)
    }
}

/// A client of one etcd. Clones share connections.
#[derive(Clone)]
pub(crate) struct EtcdClient {
    connections: Arc<[Connection]>,
    turn: Arc<AtomicUsize>,
    ports: Vec<u16>,
}

impl EtcdClient {
    fn connection(&self, client: usize) -> &Connection {
        &self.connections[client % self.connections.len()]
    }

    pub(crate) async fn put(&self, client: usize, key: &str, value: &[u8]) -> anyhow::Result<()> {
        self.connection(client).call("/etcdserverpb.KV/Put", &put_message(key, value)).await.map(drop)
    }

    /// A linearizable read: etcd's default.
    pub(crate) async fn get(&self, client: usize, key: &str) -> anyhow::Result<()> {
        let answer =
            self.connection(client).call("/etcdserverpb.KV/Range", &message(1, key.as_bytes())).await?;
        let is_found = fields(&answer).any(|(field, _)| field == 2);
        anyhow::ensure!(is_found, "a key that was written is not there");
        Ok(())
    }

    /// A put at any member that takes it: each is tried for a quarter of a second.
    pub(crate) async fn put_anywhere(&self, key: &str, value: &[u8]) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            let port = self.ports[self.turn.fetch_add(1, Ordering::Relaxed) % self.ports.len()];
            let attempt = async {
                Connection::open(port).await?.call("/etcdserverpb.KV/Put", &put_message(key, value)).await
            };
            match tokio::time::timeout(Duration::from_millis(250), attempt).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(_) => {}
            }
        }
        bail!("no put for a minute")
    }
}

fn put_message(key: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = message(1, key.as_bytes());
    bytes.extend(message(2, value));
    bytes
}

/// One field of bytes in protobuf.
fn message(field: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 2];
    let mut length = value.len();
    while length >= 0x80 {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(value);
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Field<'_> {
    fn number(self) -> Option<u64> {
        if let Self::Number(number) = self { Some(number) } else { None }
    }
}

/// The fields of a protobuf message: numbers and bytes are all that these messages hold.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Field::Bytes(value)
            }
            _ => return None,
        };
        Some((tag >> 3, value))
    })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_back_as_they_were_written() {
        let value = vec![7; 300];
        let bytes = put_message("key", &value);
        let found: Vec<(u64, Field<'_>)> = fields(&bytes).collect();
        assert_eq!(found, [(1, Field::Bytes(b"key")), (2, Field::Bytes(&value))]);
        assert_eq!(fields(&[0x20, 0x96, 0x01]).collect::<Vec<_>>(), [(4, Field::Number(150))]);
        assert_eq!(fields(&[0x0a, 0xff]).count(), 0, "cut short");
    }
}
