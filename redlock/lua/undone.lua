-- A release that has overtaken this request has left a mark.
if flag == '*' then
  redis.call('ZREMRANGEBYSCORE', MARKS, '-inf', now)
  if redis.call('ZSCORE', MARKS, ARGV[1]) then return 'undone' end
  if ARGV[7] and redis.call('ZSCORE', MARKS, ARGV[1] .. ':' .. ARGV[7]) then return 'undone' end
  if redis.call('EXISTS', MARKS) == 0 then flag = '' end
end
