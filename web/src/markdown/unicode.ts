// In place of the package `uc.micro`, whose tables browsers have built in.

export const P = /\p{P}/u;
export const S = /\p{S}/u;
export const Z = /\p{Z}/u;
