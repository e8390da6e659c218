//! The tables of the simulated environment.
//!
//! A small cross-section of a sales environment in which every peculiarity of dataverse sections 2, 7 and 8
//! occurs at least once: irregular set names (2.7), activities that share a key (8.2), customer addresses as
//! rows (8.1), link tables with and without tracking on both sides (4.1), elastic and virtual tables (8.12,
//! 8.13), tables that refuse to be read (2.8) and tables without change tracking (4.7).

use crate::dice::named_guid;
use crate::guid::Guid;
use crate::schema::{Ends, Ownership, Slot, Storage, TableDef, Unreadable};

/// `DataProviderId` of elastic tables (dataverse 2.1).
pub(crate) const ELASTIC_PROVIDER: &str = "1d9bde74-9ebd-4da9-8ff5-aa74945b9f74";
/// The table generated on the fly.
pub(crate) const BIG: &str = "new_big";
/// The union of all activities.
pub(crate) const POINTER: &str = "activitypointer";
/// Columns shared by all activities, in the order of `activitypointer`.
pub(crate) const ACTIVITY_COLUMNS: &str = "subject:s400* description:memo1048576 regardingobjectid:=>account|contact|lead|opportunity|incident \
    scheduledstart:dt scheduledend:dt actualdurationminutes:int isbilled:bool prioritycode:opt(0,1,2) statecode:state(0,1,2) statuscode:status(1@0,2@1,3@2)";

/// Id of the only row of `organization`; other environments have others.
pub(crate) fn organization_id(environment: u64) -> Guid {
    named_guid(&in_environment("organization", environment))
}

/// The name of something that every environment has for itself.
pub(crate) fn in_environment(name: &str, environment: u64) -> String {
    if environment == 0 { name.to_owned() } else { format!("{name} of environment {environment}") }
}

fn owned(name: &str, set: &str, columns: &str) -> TableDef {
    let mut table = TableDef::new(name, Some(set), &format!("{name}id"));
    table.add(columns);
    table.add_common(Ownership::User);
    table
}

fn shared(name: &str, set: &str, columns: &str) -> TableDef {
    let mut table = TableDef::new(name, Some(set), &format!("{name}id"));
    table.add(columns);
    table.add_common(Ownership::Organization);
    table
}

fn activity(name: &str, set: &str, columns: &str) -> TableDef {
    // Every activity has the same key column (dataverse 2.1).
    let mut table = TableDef::new(name, Some(set), "activityid");
    table.activity = true;
    table.add("activitytypecode:entityname^");
    table.add(ACTIVITY_COLUMNS);
    table.add(columns);
    table.add_common(Ownership::User);
    table
}

fn link(name: &str, set: &str, relationship: &str, first: (&str, &str), second: (&str, &str)) -> TableDef {
    let mut table = TableDef::new(name, Some(set), &format!("{name}id"));
    table.add(&format!("{}:guid^ {}:guid^", first.1, second.1));
    // Links are made and cut; their own ids cannot be chosen (dataverse 2.2).
    table.columns[0].writable = false;
    // Link rows carry ids and a version only (dataverse 6.3).
    table.add_common(Ownership::None);
    table.ends = Some(Ends {
        relationship: relationship.to_owned(),
        first: (first.0.to_owned(), first.1.to_owned()),
        second: (second.0.to_owned(), second.1.to_owned()),
    });
    table
}

/// The definitions, in the order in which rows are made.
pub(crate) fn tables(with_big_table: bool) -> Vec<TableDef> {
    let mut tables = platform();
    tables.extend(customers());
    tables.extend(activities());
    tables.extend(closings());
    tables.extend(supporting());
    tables.extend(links());
    tables.extend(special());
    if with_big_table {
        tables.push(big());
    }
    for (index, table) in (0_u32..).zip(tables.iter_mut()) {
        // Codes of custom tables start at 10000 and differ per environment (dataverse 2.1).
        table.type_code = if table.is_custom() { 10_000 + index } else { index + 1 };
    }
    tables
}

fn platform() -> Vec<TableDef> {
    let mut organization = TableDef::new("organization", Some("organizations"), "organizationid");
    organization.add(
        "name:s160* basecurrencyid:->transactioncurrency languagecode:int localeid:int maxuploadfilesize:int blockedattachments:memo1073741823 \
         expirechangetrackingindays:int expiresubscriptionsindays:int isauditenabled:bool createdon:dt^ modifiedon:dt^",
    );
    organization.add_common(Ownership::None);
    organization.fixed = true;

    let mut unit = shared(
        "businessunit",
        "businessunits",
        "name:s160* parentbusinessunitid:->businessunit isdisabled:bool costcenter:s100 websiteurl:url",
    );
    unit.fixed = true;
    let mut user = shared(
        "systemuser",
        "systemusers",
        "fullname:s200*^ firstname:s256 lastname:s256 domainname:s1024 internalemailaddress:email businessunitid:->businessunit! \
         parentsystemuserid:->systemuser isdisabled:bool accessmode:opt(0,1,4) applicationid:guid azureactivedirectoryobjectid:guid entityimage:image",
    );
    user.fixed = true;
    let mut team = shared(
        "team",
        "teams",
        "name:s160* description:memo2000 teamtype:opt(0,1,2) isdefault:bool businessunitid:->businessunit! administratorid:->systemuser emailaddress:email",
    );
    // Owners stay, or rows would be left without one.
    team.fixed = true;
    let mut currency = shared(
        "transactioncurrency",
        "transactioncurrencies",
        "currencyname:s100* isocurrencycode:s5 currencysymbol:s13 currencyprecision:int statecode:state(0,1) statuscode:status(1@0,2@1)",
    );
    currency.fixed = true;
    // Its own rate, not a copy of another currency's.
    currency.add("exchangerate:dec10");
    vec![organization, unit, user, team, currency]
}

fn customers() -> Vec<TableDef> {
    let mut account = owned(
        "account",
        "accounts",
        "name:s160* accountnumber:s20 accountcategorycode:opt(1,2) accountratingcode:opt(1) businesstypecode:opt(1) customertypecode:opt(1,2,3,4,5,6,7,8,9,10,11,12) \
         industrycode:opt(1,2,3,4,5,6,7,8,9,10) ownershipcode:opt(1,2,3,4) preferredcontactmethodcode:opt(1,2,3,4,5) \
         parentaccountid:->account primarycontactid:->contact masterid:->account preferredsystemuserid:->systemuser \
         revenue:money4 creditlimit:money2 marketcap:money4 aging30:money2% openrevenue:money2% openrevenue_date:dt^ openrevenue_state:int^ \
         numberofemployees:int sharesoutstanding:int creditonhold:bool donotemail:bool donotphone:bool merged:bool^ \
         telephone1:phone telephone2:phone fax:phone emailaddress1:email emailaddress2:email websiteurl:url tickersymbol:s10 sic:s20 description:memo1048576 \
         address1_addressid:guid address1_line1:s250 address1_city:s80 address1_postalcode:s20 address1_country:s80 address1_latitude:dbl address1_longitude:dbl \
         address2_addressid:guid address2_city:s80 lastonholdtime:dt lastusedincampaign:dtdate \
         new_rating:dec10 new_score:dbl new_counter:big new_segments:multi(1,2,5,8,100000000) new_founded:date new_opening:tzi new_taxid:s40$ \
         new_contract:file entityimage:image statecode:state(0,1) statuscode:status(1@0,2@1)",
    );
    account.key = Some("accountnumber".to_owned());
    let contact = owned(
        "contact",
        "contacts",
        "fullname:s160*^ firstname:s50 lastname:s50 salutation:s100 jobtitle:s100 parentcustomerid:=>account|contact& emailaddress1:email telephone1:phone mobilephone:phone \
         birthdate:date anniversary:date gendercode:opt(1,2) familystatuscode:opt(1,2,3,4) creditlimit:money2 donotemail:bool description:memo2000 \
         address1_addressid:guid address1_city:s80 address1_line1:s250 annualincome:money2 numberofchildren:int entityimage:image new_cv:file \
         statecode:state(0,1) statuscode:status(1@0,2@1)",
    );
    let lead = owned(
        "lead",
        "leads",
        "subject:s300* fullname:s160^ firstname:s50 lastname:s50 companyname:s100 emailaddress1:email estimatedamount:money2 estimatedclosedate:date \
         leadqualitycode:opt(1,2,3) leadsourcecode:opt(1,2,3,4,5,6,7,8,9,10) parentaccountid:->account parentcontactid:->contact description:memo2000 \
         statecode:state(0,1,2) statuscode:status(1@0,2@0,3@1,4@2,5@2,6@2,7@2)",
    );
    let opportunity = owned(
        "opportunity",
        "opportunities",
        "name:s300* customerid:=>account|contact!& parentaccountid:->account parentcontactid:->contact originatingleadid:->lead pricelevelid:->pricelevel# \
         estimatedvalue:money4 actualvalue:money4 budgetamount:money2 closeprobability:int estimatedclosedate:date actualclosedate:date description:memo2000 \
         stepname:s200 statecode:state(0,1,2) statuscode:status(1@0,2@0,3@1,4@2,5@2)",
    );
    let incident = owned(
        "incident",
        "incidents",
        "title:s200* ticketnumber:s100 customerid:=>account|contact!& primarycontactid:->contact productid:->product caseorigincode:opt(1,2,3) \
         casetypecode:opt(1,2,3) prioritycode:opt(1,2,3) escalatedon:dt followupby:dtdate description:memo2000 statecode:state(0,1,2) statuscode:status(1@0,2@0,3@0,4@0,5@1,6@2)",
    );
    // No owner of its own: an address belongs to its parent (dataverse 8.1).
    let mut address = TableDef::new("customeraddress", Some("customeraddresses"), "customeraddressid");
    address.add(
        "name:s200* addressnumber:int parentid:=>account|contact! objecttypecode:entityname addresstypecode:opt(1,2,3,4) line1:s250 line2:s250 city:s80 \
         postalcode:s20 country:s80 latitude:dbl longitude:dbl createdon:dt^ createdby:->systemuser^ modifiedon:dt^ modifiedby:->systemuser^",
    );
    address.add_common(Ownership::None);
    address.concurrency = false;
    let quote = owned(
        "quote",
        "quotes",
        "name:s300* quotenumber:s100 revisionnumber:int^ customerid:=>account|contact! opportunityid:->opportunity pricelevelid:->pricelevel# \
         discountamount:money4 freightamount:money4 effectivefrom:date effectiveto:date description:memo2000 \
         statecode:state(0,1,2,3) statuscode:status(1@0,2@1,3@1,4@2,5@3,6@3,7@3)",
    );
    let order = owned(
        "salesorder",
        "salesorders",
        "name:s300* ordernumber:s100 customerid:=>account|contact! quoteid:->quote opportunityid:->opportunity pricelevelid:->pricelevel# \
         discountamount:money4 freightamount:money4 datefulfilled:date description:memo2000 \
         statecode:state(0,1,2,3,4) statuscode:status(1@0,2@0,3@1,4@2,100001@3,100002@3,100003@4)",
    );
    let mut tables = vec![account, contact, lead, opportunity, incident, address, quote, order];
    for table in &mut tables {
        table.bulk = matches!(table.name.as_str(), "account" | "contact" | "lead" | "opportunity" | "incident");
    }
    tables
}

/// The activities that record how something was closed (dataverse 6.5).
fn closings() -> Vec<TableDef> {
    vec![
        activity(
            "opportunityclose",
            "opportunitycloses",
            "opportunityid:=>opportunity actualrevenue:money4 actualend:dt opportunitystatuscode:opt(3,4,5)",
        ),
        activity("incidentresolution", "incidentresolutions", "incidentid:=>incident timespent:int actualend:dt"),
        activity("quoteclose", "quotecloses", "quoteid:=>quote quotenumber:s100 actualend:dt"),
        activity("orderclose", "ordercloses", "salesorderid:=>salesorder ordernumber:s100 actualend:dt"),
    ]
}

fn activities() -> Vec<TableDef> {
    let task = activity("task", "tasks", "percentcomplete:int category:s250");
    let phonecall = activity("phonecall", "phonecalls", "phonenumber:phone directioncode:bool from:party to:party");
    let email = activity(
        "email",
        "emails",
        "directioncode:bool sender:email torecipients:s500 messageid:s320 senton:dt from:party to:party cc:party bcc:party",
    );
    let appointment = activity(
        "appointment",
        "appointments",
        "location:s200 isalldayevent:bool globalobjectid:s300 requiredattendees:party",
    );
    let mut pointer = activity(POINTER, "activitypointers", "");
    // A view over the activities themselves (dataverse 2.8): changes arrive through them.
    pointer.fixed = true;
    let mut party = TableDef::new("activityparty", Some("activityparties"), "activitypartyid");
    party.add("activityid:=>email|appointment|phonecall! partyid:->account|contact|systemuser|lead participationtypemask:opt(1,2,3,4,5,6,7)! addressused:email effort:dbl ispartydeleted:bool^");
    party.add_common(Ownership::None);
    party.tracking = false;
    party.concurrency = false;
    let mut attachment =
        TableDef::new("activitymimeattachment", Some("activitymimeattachments"), "activitymimeattachmentid");
    attachment.add(
        "objectid:=>email objecttypecode:entityname subject:s2000 filename:s255* mimetype:s256 filesize:int^ attachmentnumber:int attachmentid:guid body:body",
    );
    attachment.add_common(Ownership::None);
    attachment.concurrency = false;
    let mut note = owned(
        "annotation",
        "annotations",
        "subject:s500* notetext:memo100000 isdocument:bool filename:s255 mimetype:s256 filesize:int^ documentbody:body \
         objectid:=>account|contact|incident objecttypecode:entityname",
    );
    note.concurrency = false;
    vec![task, phonecall, email, appointment, pointer, party, attachment, note]
}

fn supporting() -> Vec<TableDef> {
    let mut subject =
        shared("subject", "subjects", "title:s500* description:memo2000 parentsubject:->subject featuremask:int");
    subject.tracking = false;
    let note = {
        let mut table = owned(
            "new_note",
            "new_notes",
            "new_name:s100* new_text:memo4000 new_accountid:->account new_amount:money4",
        );
        table.tracking = false;
        table.bulk = true;
        table
    };
    let mut tables = vec![
        owned(
            "connection",
            "connections",
            "name:s500*^ record1id:=>account|contact|opportunity|systemuser! record2id:=>account|contact|opportunity|systemuser! ismaster:bool^ relatedconnectionid:=>connection^ effectivestart:dt description:memo2000 \
             statecode:state(0,1) statuscode:status(1@0,2@1)",
        ),
        owned(
            "queue",
            "queues",
            "name:s200* description:memo2000 emailaddress:email queueviewtype:opt(0,1) statecode:state(0,1) statuscode:status(1@0,2@1)",
        ),
        owned(
            "queueitem",
            "queueitems",
            "title:s300* queueid:=>queue! objectid:=>incident|task|email|phonecall! enteredon:dt^ workeron:dt statecode:state(0,1) statuscode:status(1@0,2@1)",
        ),
        shared(
            "product",
            "products",
            "name:s100* productnumber:s100 description:memo2000 price:money4 standardcost:money10 currentcost:money4 quantityonhand:dec5 stockweight:dec5 \
             parentproductid:->product pricelevelid:->pricelevel subjectid:->subject validfromdate:date entityimage:image statecode:state(2,0,1,3) statuscode:status(0@2,1@0,2@1,3@3)",
        ),
        shared(
            "pricelevel",
            "pricelevels",
            "name:s100* begindate:date enddate:date description:memo2000 statecode:state(0,1) statuscode:status(100001@0,100002@1)",
        ),
        // A set name no rule of grammar gives (dataverse 2.7).
        owned(
            "new_widget",
            "new_widgetses",
            "new_name:s100* new_code:s10 new_parent:->new_widget new_accountid:=>account new_amount:money4 new_weight:dec10 new_ratio:dbl new_big:big \
             new_flags:multi(1,2,3,4) new_due:date new_at:tzi new_payload:memo1048576 new_link:url new_picture:image new_document:file statecode:state(0,1) statuscode:status(1@0,2@1)",
        ),
        subject,
        note,
    ];
    for table in tables.iter_mut().filter(|table| matches!(table.name.as_str(), "new_widget" | "pricelevel")) {
        table.bulk = true;
    }
    tables
}

fn links() -> Vec<TableDef> {
    let mut untracked = link(
        "new_widget_note",
        "new_widget_noteset",
        "new_widget_new_note",
        ("new_widget", "new_widgetid"),
        ("new_note", "new_noteid"),
    );
    // Enabled, and yet refused, because new_note is not tracked (dataverse 4.1).
    untracked.tracking = true;
    vec![
        link(
            "accountleads",
            "accountleadscollection",
            "accountleads_association",
            ("account", "accountid"),
            ("lead", "leadid"),
        ),
        link(
            "teammembership",
            "teammemberships",
            "teammembership_association",
            ("systemuser", "systemuserid"),
            ("team", "teamid"),
        ),
        // Roles of a self-referential relationship are not symmetric (dataverse 2.4).
        link(
            "new_account_account",
            "new_account_accountset",
            "new_partner_accounts",
            ("account", "accountidone"),
            ("account", "accountidtwo"),
        ),
        untracked,
    ]
}

fn special() -> Vec<TableDef> {
    let mut telemetry = TableDef::new("new_telemetry", Some("new_telemetries"), "new_telemetryid");
    telemetry.storage = Storage::Elastic;
    telemetry.tracking = false;
    telemetry.bulk = true;
    telemetry.add("new_name:s100* new_reading:dbl new_value:dec10 new_payload:json new_at:dt ttlinseconds:int");
    telemetry.push("partitionid", crate::schema::Kind::Text { max: 1024, format: "Text" }, Slot::Partition);
    telemetry.add_common(Ownership::Organization);

    let mut external = TableDef::new("new_external", Some("new_externals"), "new_externalid");
    external.storage = Storage::Virtual;
    external.tracking = false;
    external.fixed = true;
    external.add("new_name:s100* new_code:s20");

    let mut secret = owned("new_secret", "new_secrets", "new_name:s100* new_value:s100");
    secret.unreadable = Some(Unreadable::NoPrivilege);
    secret.fixed = true;
    let mut blocked = shared("new_blocked", "new_blockeds", "new_name:s100*");
    blocked.unreadable = Some(Unreadable::NotSupported);
    blocked.fixed = true;
    let mut hidden = TableDef::new("new_hidden", None, "new_hiddenid");
    hidden.add("new_name:s100*");
    hidden.fixed = true;
    hidden.tracking = false;

    let mut job = owned(
        "asyncoperation",
        "asyncoperations",
        "name:s256* operationtype:opt(1,10,12) message:memo1073741823 retrycount:int statecode:state(0,1,2,3) statuscode:status(0@0,10@1,20@2,30@3)",
    );
    let mut trace = shared(
        "plugintracelog",
        "plugintracelogs",
        "typename:s1024* messagename:s1024 messageblock:memo1073741823 depth:int performanceexecutionduration:int",
    );
    for table in [&mut job, &mut trace] {
        table.operational = true;
        table.tracking = false;
    }
    vec![telemetry, external, secret, blocked, hidden, job, trace]
}

/// Text columns of the generated table; together with the rest a row is about two kilobytes of JSON.
pub(crate) const BIG_TEXTS: usize = 14;

fn big() -> TableDef {
    let mut table = TableDef::new(BIG, Some("new_bigs"), "new_bigid");
    table.add("new_name:s100* new_number:int new_amount:dec10 new_rate:dbl new_state:opt(1,2,3,4) new_active:bool new_day:date new_counter:big");
    for index in 1..=BIG_TEXTS {
        table.add(&format!("new_text{index:02}:s400"));
    }
    table.add("createdon:dt^ modifiedon:dt^");
    table.add_common(Ownership::None);
    table.fixed = true;
    table
}
