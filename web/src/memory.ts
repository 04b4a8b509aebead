// What the memory panel does: search, list, add, import, correct, delete, export and forget.

import { toJson } from "@bufbuild/protobuf";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { signal } from "@preact/signals";
import { failureOf } from "./failure.ts";
import { MemoryRecordSchema, type MemoryRecord } from "./gen/memory_service_pb.ts";
import type { MemoryItem } from "./gen/agent_service_pb.ts";
import { goToNew } from "./route.ts";
import { LONG_MS, service } from "./service.ts";
import { sessions } from "./sessions.ts";
import { settings, userId } from "./settings.ts";
import type { Failure } from "./turn.ts";

const PAGE = 30;
const FOUND = 30;
/** What the service takes of a document. */
const MAX_DOCUMENT_BYTES = 20_000_000;

/** A memory in the panel: found by a search, or listed. */
export interface Memory {
  id: string;
  content: string;
  sourceType: string;
  tags: string[];
  createdAt: Date | undefined;
  documentId: string;
  title: string;
  section: string;
  /** 0 to 1; undefined: it was not searched for. */
  score?: number;
  supersededBy: string;
}

export const query = signal("");
export const list = signal<Memory[]>([]);
/** What the list shows: the query that it answers, or everything. */
/** `told`: why it is not all that was asked for, `keywords-only` or `vectors-only`; empty: it is. */
export const shown = signal<{ query: string; total: number; told: string } | undefined>(undefined);
/** Where the list goes on; empty: it does not. */
export const next = signal("");
export const isBusy = signal(false);
export const failure = signal<Failure | undefined>(undefined);

/** What was done, for the user to read. */
export type Done =
  | { kind: "saved" | "known" | "corrected" }
  | { kind: "deleted" | "exported"; count: number }
  | { kind: "importing" | "tooLarge" | "notText"; name: string }
  | { kind: "imported"; name: string; chunks: number };
export const done = signal<Done[]>([]);

let latest = 0;

/** Does something with the service; what goes wrong is shown in the panel. */
async function attempt(work: () => Promise<void>): Promise<boolean> {
  isBusy.value = true;
  failure.value = undefined;
  try {
    await work();
    return true;
  } catch (error) {
    failure.value = failureOf(error);
    return false;
  } finally {
    isBusy.value = false;
  }
}

/** Shows what the query finds, or everything where it is blank. */
export async function refresh(): Promise<void> {
  const mine = (latest += 1);
  const wanted = query.value.trim();
  await attempt(async () => {
    if (wanted === "") {
      const page = await service.memory.listMemories({ userId: userId(), pageSize: PAGE });
      if (mine !== latest) return;
      list.value = page.memories.map(ofRecord);
      next.value = page.nextPageToken;
      shown.value = { query: "", total: list.value.length, told: "" };
      return;
    }
    let told = "";
    const found = await service.search.retrieveMemory(
      { userId: userId(), queryText: wanted, limit: FOUND, hybridAlpha: settings.alpha.value },
      { onHeader: (headers) => (told = headers.get("x-retrieval") ?? "") },
    );
    if (mine !== latest) return;
    list.value = found.items.map(ofItem);
    next.value = "";
    shown.value = { query: wanted, total: found.totalFound, told };
  });
}

export async function more(): Promise<void> {
  const mine = latest;
  await attempt(async () => {
    const page = await service.memory.listMemories({ userId: userId(), pageSize: PAGE, pageToken: next.value });
    if (mine !== latest) return;
    list.value = [...list.value, ...page.memories.map(ofRecord)];
    next.value = page.nextPageToken;
  });
}

export async function add(content: string): Promise<boolean> {
  return attempt(async () => {
    const { added } = await service.memory.addMemories({ userId: userId(), memories: [{ content }] });
    done.value = [{ kind: added > 0 ? "saved" : "known" }];
    await refresh();
  });
}

export async function importDocuments(files: Iterable<File>): Promise<void> {
  const told: Done[] = [];
  for (const file of files) {
    const { name } = file;
    done.value = [...told, { kind: "importing", name }];
    const content = file.size > MAX_DOCUMENT_BYTES ? undefined : await textOf(file);
    if (content === undefined) {
      told.push({ kind: file.size > MAX_DOCUMENT_BYTES ? "tooLarge" : "notText", name });
      continue;
    }
    const isImported = await attempt(async () => {
      const document = { userId: userId(), documentId: name, title: name.replace(/\.(md|markdown|txt)$/i, ""), content };
      const { chunks } = await service.memory.ingestDocument(document, { timeoutMs: LONG_MS });
      told.push({ kind: "imported", name, chunks });
    });
    if (!isImported) break;
  }
  done.value = told;
  query.value = "";
  if (failure.value === undefined) await refresh();
}

/** The text of a file; undefined: it is none. */
async function textOf(file: File): Promise<string | undefined> {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return text.includes("\0") ? undefined : text;
  } catch {
    return undefined;
  }
}

export async function correct(memory: Memory, content: string): Promise<boolean> {
  return attempt(async () => {
    await service.memory.updateMemory({ userId: userId(), id: memory.id, content });
    list.value = list.value.map((other) => (other.id === memory.id ? { ...other, content } : other));
    done.value = [{ kind: "corrected" }];
  });
}

export async function remove(memory: Memory): Promise<boolean> {
  return attempt(async () => {
    const { deleted } = await service.memory.deleteMemories({ userId: userId(), ids: [memory.id] });
    list.value = list.value.filter(({ id }) => id !== memory.id);
    done.value = [{ kind: "deleted", count: deleted }];
  });
}

export async function removeDocument(documentId: string): Promise<boolean> {
  return attempt(async () => {
    const { deleted } = await service.memory.deleteMemories({ userId: userId(), documentId });
    list.value = list.value.filter((memory) => memory.documentId !== documentId);
    done.value = [{ kind: "deleted", count: deleted }];
  });
}

/** Everything that is held, one JSON object a line, as a file. */
export async function exportAll(): Promise<void> {
  await attempt(async () => {
    const lines: string[] = [];
    for await (const record of service.memory.exportMemories({ userId: userId() }, { timeoutMs: LONG_MS })) {
      lines.push(`${JSON.stringify(toJson(MemoryRecordSchema, record, { useProtoFieldName: true }))}\n`);
    }
    const address = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
    const link = document.createElement("a");
    link.href = address;
    link.download = `memories-${new Date().toISOString().slice(0, 10)}.jsonl`;
    link.click();
    // The browser reads it after this has returned.
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    done.value = [{ kind: "exported", count: lines.length }];
  });
}

export async function forget(what: { memories: boolean; sessions: boolean }): Promise<boolean> {
  return attempt(async () => {
    if (what.memories) {
      const { deleted } = await service.memory.deleteMemories({ userId: userId(), everything: true });
      done.value = [{ kind: "deleted", count: deleted }];
    }
    if (what.sessions) {
      await sessions.removeAll();
      goToNew();
    }
    query.value = "";
    await refresh();
  });
}

function ofRecord(record: MemoryRecord): Memory {
  const { id, content, sourceType, tags, documentId, title, sectionTitle, supersededBy } = record;
  const createdAt = record.createdAt && timestampDate(record.createdAt);
  return { id, content, sourceType, tags, createdAt, documentId, title, section: sectionTitle, supersededBy };
}

function ofItem({ id, content, score, createdAt, metadata }: MemoryItem): Memory {
  return {
    id,
    content,
    score,
    createdAt: createdAt && timestampDate(createdAt),
    sourceType: metadata["source_type"] ?? "",
    tags: (metadata["tags"] ?? "").split(",").filter((tag) => tag !== ""),
    documentId: metadata["document_id"] ?? "",
    title: metadata["title"] ?? "",
    section: metadata["section_title"] ?? "",
    supersededBy: "",
  };
}
