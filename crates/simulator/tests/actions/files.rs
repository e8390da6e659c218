//! Files, images, notes and attachments by every way in.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dynavault_simulator::{Config, Simulator};
use serde_json::{Value, json};

use crate::client::{Client, Reply, id, start};

const BINARY: (&str, &str) = ("content-type", "application/octet-stream");
const BLOCK: usize = 4_194_304;

/// Bytes that differ from place to place.
fn made_up(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn stored(simulator: &Simulator, row: &str, column: &str) -> Option<(String, Vec<u8>)> {
    let file = simulator.files().into_iter().find(|file| file.row == row && file.column == column)?;
    Some((file.name, file.bytes))
}

fn png(tail: &[u8]) -> Vec<u8> {
    [b"\x89PNG\r\n\x1a\n", tail].concat()
}

async fn contract(client: &Client) -> Value {
    client.get(&format!("accounts({})?$select=new_contract,new_contract_name,modifiedon", id(1))).await
}

async fn upload(client: &Client, query: &str, name: &str, bytes: &[u8]) -> Reply {
    let path = format!("accounts({})/new_contract{query}", id(1));
    let mut headers = vec![BINARY];
    if !name.is_empty() {
        headers.push(("x-ms-file-name", name));
    }
    client.send("PATCH", &path, &headers, bytes.to_vec()).await
}

#[tokio::test]
async fn a_file_is_uploaded_whole_under_a_new_id_each_time() {
    let (simulator, client) = start(Config::default()).await;
    client.account(&id(1)).await;
    let bytes = made_up(10_000);
    assert_eq!(upload(&client, "", "plan.pdf", &bytes).await.status, 204);
    let first = contract(&client).await;
    assert_eq!(first["new_contract_name"], json!("plan.pdf"));
    assert_eq!(stored(&simulator, &id(1), "new_contract"), Some(("plan.pdf".to_owned(), bytes.clone())));
    let read = client.send("GET", &format!("accounts({})/new_contract/$value", id(1)), &[], Vec::new()).await;
    assert_eq!((read.status, read.body == bytes), (200, true));
    assert_eq!((read.header("x-ms-file-size"), read.header("mimetype")), ("10000", "application/pdf"));
    // The same again: another id; and a name that fits no header.
    assert_eq!(upload(&client, "?x-ms-file-name=%C3%9Cbung%20%231%2B.pdf", "", &bytes).await.status, 204);
    let second = contract(&client).await;
    assert_ne!(second["new_contract"], first["new_contract"]);
    assert_eq!(second["new_contract_name"], json!("Übung #1+.pdf"));
    // The header wins over the query.
    assert_eq!(upload(&client, "?x-ms-file-name=a.txt", "b \"quoted\".txt", &bytes).await.status, 204);
    assert_eq!(contract(&client).await["new_contract_name"], json!("b \"quoted\".txt"));
    let path = format!("accounts({})/new_contract", id(1));
    assert_eq!(client.send("DELETE", &path, &[], Vec::new()).await.status, 204);
    assert_eq!(contract(&client).await["new_contract"], Value::Null);
    assert_eq!(contract(&client).await["new_contract_name"], Value::Null);
    assert_eq!(stored(&simulator, &id(1), "new_contract"), None);
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_and_changes_nothing() {
    let (_simulator, client) = start(Config::default()).await;
    client.account(&id(1)).await;
    assert_eq!(upload(&client, "", "kept.txt", b"kept").await.status, 204);
    let before = contract(&client).await;
    assert_eq!(upload(&client, "", "run.EXE", b"x").await.refusal(), (400, "0x80043e09".to_owned()));
    let large = upload(&client, "", "large.bin", &made_up(8 * BLOCK + 1)).await;
    assert_eq!(large.refusal(), (400, "0x80044a02".to_owned()));
    assert_eq!(upload(&client, "", "", b"nameless").await.status, 400);
    let path = format!("accounts({})/new_contract", id(1));
    let as_json = client.call("PATCH", &path, &json!({"value": "x"})).await;
    assert!((400..500).contains(&as_json.status), "a file is binary");
    let missing = client.send("PATCH", &format!("accounts({})/new_contract", id(9)), &[BINARY], Vec::new()).await;
    assert_eq!(missing.refusal(), (404, "0x80040217".to_owned()));
    let plain = client.send("PATCH", &format!("accounts({})/name", id(1)), &[BINARY], Vec::new()).await;
    assert_eq!(plain.status, 405);
    let in_body = client.call("PATCH", &format!("accounts({})", id(1)), &json!({"new_contract": id(7)})).await;
    assert_eq!(in_body.status, 400, "the row itself does not take a file");
    assert_eq!(contract(&client).await, before);
}

#[tokio::test]
async fn chunks_come_one_after_the_other_and_the_last_one_completes_the_file() {
    let (simulator, client) = start(Config::default()).await;
    client.account(&id(1)).await;
    let bytes = made_up(2 * BLOCK + 77);
    let path = format!("accounts({})/new_contract?x-ms-file-name=big.bin", id(1));
    let opened = client.send("PATCH", &path, &[("x-ms-transfer-mode", "chunked")], Vec::new()).await;
    assert_eq!((opened.status, opened.header("x-ms-chunk-size")), (200, "4194304"));
    let location = opened.header("location").to_owned();
    assert!(location.starts_with(&client.url) && location.contains("sessiontoken="), "{location}");
    let chunk = async |from: usize, to: usize, total: usize| {
        let range = format!("bytes {from}-{}/{total}", to - 1);
        client.send("PATCH", &location, &[BINARY, ("content-range", &range)], bytes[from..to].to_vec()).await.status
    };
    let total = bytes.len();
    assert_eq!(chunk(BLOCK, 2 * BLOCK, total).await, 400, "not the first one");
    assert_eq!(chunk(0, BLOCK, total).await, 206);
    assert_eq!(chunk(0, BLOCK, total).await, 206, "the answer may have been lost");
    assert_eq!(chunk(BLOCK, 2 * BLOCK, total).await, 206);
    assert_eq!(chunk(0, BLOCK, total).await, 400);
    assert_eq!(contract(&client).await["new_contract"], Value::Null, "nothing is there before the end");
    assert_eq!(chunk(2 * BLOCK, total, total).await, 204);
    assert_eq!(stored(&simulator, &id(1), "new_contract"), Some(("big.bin".to_owned(), bytes.clone())));
    assert_eq!(chunk(2 * BLOCK, total, total).await, 400, "the session is over");
}

fn file_target() -> Value {
    json!({"@odata.type": "Microsoft.Dynamics.CRM.account", "accountid": id(1)})
}

async fn put_blocks(client: &Client, token: &Value, blocks: &[&[u8]]) -> Vec<String> {
    let mut ids = Vec::new();
    for (number, block) in blocks.iter().enumerate() {
        let block_id = STANDARD.encode(format!("block-{number:04}"));
        let body = json!({"BlockId": block_id, "BlockData": STANDARD.encode(block), "FileContinuationToken": token});
        assert_eq!(client.message("UploadBlock", body).await.status, 204);
        ids.push(block_id);
    }
    ids
}

#[tokio::test]
async fn the_list_of_blocks_decides_their_order_and_the_commit_the_media_type() {
    let (simulator, client) = start(Config::default()).await;
    client.account(&id(1)).await;
    let body = json!({"Target": file_target(), "FileAttributeName": "new_contract", "FileName": "first.txt"});
    let token = client.message("InitializeFileBlocksUpload", body).await.json()["FileContinuationToken"].clone();
    let mut ids = put_blocks(&client, &token, &[b"world", b"hello "]).await;
    let uneven = json!({"BlockId": STANDARD.encode("x"), "BlockData": "", "FileContinuationToken": token});
    assert_eq!(client.message("UploadBlock", uneven).await.status, 400, "ids are equally long");
    ids.reverse();
    let commit = |list: Value| json!({"FileName": "second.txt", "MimeType": "text/x-greeting", "BlockList": list, "FileContinuationToken": token});
    assert_eq!(client.message("CommitFileBlocksUpload", commit(json!(["bm9uZQ=="]))).await.status, 400);
    let done = client.message("CommitFileBlocksUpload", commit(json!(ids))).await;
    assert_eq!((done.status, &done.json()["FileSizeInBytes"]), (200, &json!(11)));
    assert_eq!(contract(&client).await["new_contract"], done.json()["FileId"]);
    assert_eq!(stored(&simulator, &id(1), "new_contract"), Some(("second.txt".to_owned(), b"hello world".to_vec())));
    let read = client.send("GET", &format!("accounts({})/new_contract/$value", id(1)), &[], Vec::new()).await;
    assert_eq!(read.header("mimetype"), "text/x-greeting");
    let again = client.message("CommitFileBlocksUpload", commit(json!(ids))).await;
    assert_eq!(again.status, 400, "a token serves once");
    let gone = client.message("DeleteFile", json!({"FileId": done.json()["FileId"]})).await;
    assert_eq!(gone.status, 204);
    assert_eq!(contract(&client).await["new_contract"], Value::Null);
}

#[tokio::test]
async fn an_uploaded_image_looks_like_the_one_it_was_copied_from() {
    let (simulator, client) = start(Config::default()).await;
    let original = simulator
        .files()
        .into_iter()
        .find(|file| file.table == "contact" && file.column == "entityimage")
        .expect("some contact has a full image");
    let thumbnail = async |row: &str| client.get(&format!("contacts({row})?$select=entityimage,entityimageid")).await;
    let text = STANDARD.encode(&original.bytes);
    client.create("contacts", &id(1), json!({"lastname": "Copied", "entityimage": text})).await;
    let (was, is) = (thumbnail(&original.row).await, thumbnail(&id(1)).await);
    assert_eq!(is["entityimage"], was["entityimage"]);
    assert_ne!(is["entityimageid"], was["entityimageid"]);
    let image = format!("contacts({})/entityimage", id(1));
    let full = client.send("GET", &format!("{image}/$value?size=full"), &[], Vec::new()).await;
    assert_eq!(full.body, original.bytes);

    let small = png(b"tiny");
    assert_eq!(client.send("PATCH", &image, &[BINARY], small.clone()).await.status, 204);
    assert_eq!(thumbnail(&id(1)).await["entityimage"], json!(STANDARD.encode(&small)));
    let broken = client.send("PATCH", &image, &[BINARY], b"no picture".to_vec()).await;
    assert_eq!(broken.refusal(), (400, "0x80072553".to_owned()));
    let cleared = client.call("PATCH", &format!("contacts({})", id(1)), &json!({"entityimage": null})).await;
    assert_eq!(cleared.status, 204);
    assert_eq!(thumbnail(&id(1)).await["entityimageid"], Value::Null);
}

#[tokio::test]
async fn only_the_primary_image_comes_with_a_new_row() {
    let (_simulator, client) = start(Config::default()).await;
    let body = json!({"new_name": "Widget", "new_picture": STANDARD.encode(png(b"x"))});
    let refused = client.message("new_widgetses", body).await;
    assert_eq!(refused.refusal(), (400, "0x80090487".to_owned()));
}

#[tokio::test]
async fn a_note_takes_its_document_in_the_row_or_in_blocks() {
    let (simulator, client) = start(Config::default()).await;
    client.account(&id(1)).await;
    let parent = format!("/accounts({})", id(1));
    let note = |text: &str, name: &str| {
        json!({"subject": "Note", "filename": name, "mimetype": "text/plain", "documentbody": STANDARD.encode(text),
            "objectid_account@odata.bind": parent})
    };
    client.create("annotations", &id(2), note("small", "small.txt")).await;
    let row = client.get(&format!("annotations({})", id(2))).await;
    assert_eq!(
        (&row["filesize"], &row["isdocument"], &row["filename"]),
        (&json!(5), &json!(true), &json!("small.txt"))
    );
    assert_eq!(row["documentbody"], json!(STANDARD.encode("small")));
    let renamed = client.call("PATCH", &format!("annotations({})", id(2)), &json!({"filename": "other.txt"})).await;
    assert_eq!(renamed.status, 204);
    assert_eq!(stored(&simulator, &id(2), "documentbody"), Some(("other.txt".to_owned(), b"small".to_vec())));

    let target =
        json!({"@odata.type": "Microsoft.Dynamics.CRM.annotation", "annotationid": id(2), "filename": "large.bin"});
    let start = client.message("InitializeAnnotationBlocksUpload", json!({"Target": target})).await;
    let token = start.json()["FileContinuationToken"].clone();
    let bytes = made_up(300_000);
    let ids = put_blocks(&client, &token, &[&bytes[..200_000], &bytes[200_000..]]).await;
    let commit = json!({"Target": target, "BlockList": ids, "FileContinuationToken": token});
    let done = client.message("CommitAnnotationBlocksUpload", commit).await;
    assert_eq!((&done.json()["AnnotationId"], &done.json()["FileSizeInBytes"]), (&json!(id(2)), &json!(300_000)));
    assert_eq!(stored(&simulator, &id(2), "documentbody"), Some(("large.bin".to_owned(), bytes)));

    let blocked = client.message("annotations", note("x", "virus.exe")).await;
    assert_eq!(blocked.refusal(), (400, "0x80043e09".to_owned()));
    // The limit counts base64 text: 5 MiB of it are less than 4 MiB of bytes.
    let mut large = note("", "large.bin");
    large["documentbody"] = json!(STANDARD.encode(made_up(BLOCK)));
    assert_eq!(client.message("annotations", large).await.refusal(), (400, "0x80044a02".to_owned()));
    let orphan = json!({"subject": "Note", "objectid_account@odata.bind": format!("/accounts({})", id(9))});
    assert_eq!(client.message("annotations", orphan).await.refusal().1, "0x80040217");
}

#[tokio::test]
async fn attachments_are_created_with_their_body_and_can_share_one() {
    let (simulator, client) = start(Config::default()).await;
    client.create("emails", &id(1), json!({"subject": "Mail"})).await;
    // The metadata says through which property an attachment finds its mail.
    let lookups = client.get("EntityDefinitions(LogicalName='activitymimeattachment')/ManyToOneRelationships").await;
    let to_mail = lookups["value"].as_array().unwrap().iter().find(|lookup| lookup["ReferencedEntity"] == "email");
    let navigation = to_mail.unwrap()["ReferencingEntityNavigationPropertyName"].as_str().unwrap();
    let mut target = json!({"@odata.type": "Microsoft.Dynamics.CRM.activitymimeattachment", "filename": "a.txt",
        "activitymimeattachmentid": id(2)});
    target[format!("{navigation}@odata.bind")] = json!(format!("/emails({})", id(1)));
    let start = client.message("InitializeAttachmentBlocksUpload", json!({"Target": target})).await;
    let token = start.json()["FileContinuationToken"].clone();
    let ids = put_blocks(&client, &token, &[b"attached"]).await;
    let commit = json!({"Target": target, "BlockList": ids, "FileContinuationToken": token});
    let done = client.message("CommitAttachmentBlocksUpload", commit).await;
    assert_eq!((done.status, &done.json()["ActivityMimeAttachmentId"]), (200, &json!(id(2))), "{:?}", done.json());
    assert_eq!(stored(&simulator, &id(2), "body"), Some(("a.txt".to_owned(), b"attached".to_vec())));
    let first = client.get(&format!("activitymimeattachments({})", id(2))).await;
    assert!(first["attachmentid"].is_string());
    let mut second = target.clone();
    second["activitymimeattachmentid"] = json!(id(3));
    second["attachmentid"] = first["attachmentid"].clone();
    second.as_object_mut().unwrap().remove("@odata.type");
    client.create("activitymimeattachments", &id(3), second).await;
    assert_eq!(stored(&simulator, &id(3), "body").unwrap().1, b"attached");
    let unknown = json!({"filename": "b.txt", "attachmentid": id(99)});
    assert_eq!(client.message("activitymimeattachments", unknown).await.refusal(), (404, "0x80040217".to_owned()));
}
