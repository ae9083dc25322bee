// The server's API: JSON in and out, one kind of error, a token when it asks for one.

const TIMEOUT_MS = 60_000;
const ALIVE_EVERY_MS = 3_000;
const TOKEN = "voxseek.token";

// code is the server's own, or "offline", "timeout", "token", "cancelled".
export class ApiError extends Error {
  constructor(code, message, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

export class Api {
  // askForToken(isRefused) resolves to a token, or null when the reader declines.
  constructor(askForToken) {
    this.askForToken = askForToken;
    this.asking = null;
  }

  get token() {
    return sessionStorage.getItem(TOKEN);
  }

  get(path, { signal } = {}) {
    return this.#send(path, { signal }, (response) => response.json());
  }

  post(path, body, { signal } = {}) {
    const headers = { "Content-Type": "application/json" };
    const options = { method: "POST", headers, body: JSON.stringify(body), signal };
    return this.#send(path, options, (response) => response.json());
  }

  blob(path, { signal } = {}) {
    return this.#send(path, { signal }, (response) => response.blob());
  }

  // Resolves once the server answers again.
  async untilAlive() {
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, ALIVE_EVERY_MS));
      try {
        await fetch("healthz", { cache: "no-store", signal: AbortSignal.timeout(ALIVE_EVERY_MS) });
        return;
      } catch {
        // not yet
      }
    }
  }

  async #send(path, options, read) {
    const sent = this.token;
    const answer = await this.#fetch(path, options, sent, read);
    if (!(answer instanceof ApiError)) return answer;
    if (answer.status !== 401) throw answer;
    if (this.token === sent) {
      this.asking ??= this.askForToken(sent !== null).finally(() => (this.asking = null));
      const token = await this.asking;
      if (!token) throw new ApiError("token", "This server asks for a token.", 401);
      sessionStorage.setItem(TOKEN, token);
    }
    return this.#send(path, options, read);
  }

  // What the server said, read; an ApiError where it refused.
  async #fetch(path, { signal, headers = {}, ...options }, token, read) {
    const limit = AbortSignal.timeout(TIMEOUT_MS);
    const both = signal ? AbortSignal.any([signal, limit]) : limit;
    const authorization = token ? { Authorization: `Bearer ${token}` } : {};
    try {
      const all = { ...options, headers: { ...headers, ...authorization }, signal: both };
      const response = await fetch(path, all);
      return response.ok ? await read(response) : await errorOf(response);
    } catch {
      if (signal?.aborted) throw new ApiError("cancelled", "Cancelled.");
      if (limit.aborted) {
        const seconds = TIMEOUT_MS / 1000;
        throw new ApiError("timeout", `The server did not answer within ${seconds} seconds.`);
      }
      throw new ApiError("offline", "The server doesn't answer. Is it still running?");
    }
  }
}

async function errorOf(response) {
  try {
    const { error } = await response.json();
    return new ApiError(error.code, error.message, response.status);
  } catch {
    const words = response.statusText || "an answer that isn't of this API";
    return new ApiError(
      "http",
      `The server answered ${response.status}: ${words}.`,
      response.status,
    );
  }
}
