// Asks an installed OpenClaw's own rules about a configuration: node validate.mjs <package>, the configuration on stdin.
// The answer is the last line of stdout: {"ok": true} or {"ok": false, "issues": [{"path", "message"}]}.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const config = JSON.parse(readFileSync(0, "utf8"));
const rules = await import(pathToFileURL(join(process.argv[2], "dist", "config", "validation.js")).href);
// The first one is what a start asks: it knows the plugins' own rules as well.
const validate = rules.validateConfigObjectWithPlugins ?? rules.validateConfigObject;
const { ok, issues = [] } = await validate(config);
const answer = { ok, issues: issues.map(({ path, message }) => ({ path, message })) };
process.stdout.write(`\n${JSON.stringify(answer)}\n`, () => process.exit(0));
